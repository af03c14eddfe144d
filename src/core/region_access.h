#pragma once
// One access of the guest that an ioregionfd server answers, as the commands that it takes, and how far they
// have got: a signal may call the thread away between any two bytes, and the next KVM_RUN goes on from there
// (SEEDS G3). Owner: Vcpu. Only the thread that runs the vCPU.

#include <memory>
#include <vector>

#include "core/io_channel.h"
#include "core/io_regions.h"
#include "x86/exit.h"

namespace anykvm::core {

class RegionAccess {
 public:
  // `exit` is a kMmio or kPio.
  RegionAccess(const x86::Exit& exit, IoRegions::Hit region);

  IoChannel::Outcome go_on(const IoChannel::Caller& caller);

  const x86::Exit& exit() const { return m_exit; }
  // For Cpu::complete_io(), once go_on() said kDone.
  const void* answer() const { return m_exit.write ? nullptr : m_data.data(); }

 private:
  void begin_command(unsigned size);

  x86::Exit m_exit;
  IoRegions::Hit m_region;
  std::vector<u8> m_data;                 // of all items
  std::size_t m_done = 0;                 // bytes of it
  std::shared_ptr<IoExchange> m_command;  // in progress
};

}  // namespace anykvm::core
