#pragma once
// Event counts of a VM or a vCPU, and the file in which a client reads them (KVM API 4.133). The file is made
// when it is first asked for; from then on the counts live in it. Owner: Vm or Vcpu, under the lock that its
// declaration names.

#include <string>
#include <vector>

#include "base/expected.h"
#include "base/fd.h"
#include "base/types.h"

namespace anykvm::core {

#define ANYKVM_STAT_Vm(name)
#define ANYKVM_STAT_Vcpu(name) name,
#define ANYKVM_STAT(kind, name) ANYKVM_STAT_##kind(name)
enum class VcpuStat : u8 {
#include "core/stats.def"
};
#undef ANYKVM_STAT_Vm
#undef ANYKVM_STAT_Vcpu
#define ANYKVM_STAT_Vm(name) name,
#define ANYKVM_STAT_Vcpu(name)
enum class VmStat : u8 {
#include "core/stats.def"
};
#undef ANYKVM_STAT_Vm
#undef ANYKVM_STAT_Vcpu
#undef ANYKVM_STAT

class Stats {
 public:
  enum class Kind : u8 { kVm, kVcpu };

  explicit Stats(Kind kind);
  ~Stats();
  Stats(const Stats&) = delete;
  Stats& operator=(const Stats&) = delete;

  void count(VmStat stat) { add(static_cast<std::size_t>(stat)); }
  void count(VcpuStat stat) { add(static_cast<std::size_t>(stat)); }

  // A new read-only descriptor of the file. `id` names the object in the file's header.
  Result<Fd> descriptor(const std::string& id);

 private:
  void add(std::size_t index) { __atomic_store_n(m_values + index, m_values[index] + 1, __ATOMIC_RELAXED); }
  Result<> make_file(const std::string& id);

  const Kind m_kind;
  std::vector<u64> m_early;  // until there is a file
  u64* m_values;             // m_early's, or in the file's mapping
  Fd m_file;
  void* m_mapping = nullptr;
  std::size_t m_size = 0;
};

}  // namespace anykvm::core
