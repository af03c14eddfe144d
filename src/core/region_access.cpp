#include "core/region_access.h"

#include <string.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>

#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::core {

using Reason = x86::Exit::Reason;
using Outcome = IoChannel::Outcome;

RegionAccess::RegionAccess(const x86::Exit& exit, IoRegions::Hit region)
    : m_exit(exit), m_region(std::move(region)), m_data(std::size_t{exit.size} * exit.count) {
  if (exit.write) memcpy(m_data.data(), exit.data.data(), std::min(m_data.size(), exit.data.size()));
}

// All items of a string instruction are at the same port.
void RegionAccess::begin_command(unsigned size) {
  m_command = std::make_shared<IoExchange>();
  ioregionfd_cmd& command = m_command->command;
  command.cmd = m_exit.write ? IOREGIONFD_CMD_WRITE : IOREGIONFD_CMD_READ;
  command.size_exponent = static_cast<u8>(std::countr_zero(size));
  command.resp = !m_exit.write || !m_region.posted_writes;
  command.user_data = m_region.user_data;
  command.offset = m_region.offset + m_done % m_exit.size;
  if (m_exit.write) memcpy(&command.data, m_data.data() + m_done, size);
}

// Parts of an access that crosses a page have any size; commands have those of registers.
Outcome RegionAccess::go_on(const IoChannel::Caller& caller) {
  while (m_done < m_data.size()) {
    const unsigned size = std::bit_floor(static_cast<unsigned>(m_exit.size - m_done % m_exit.size));
    if (!m_command) begin_command(size);
    const Outcome outcome = m_region.channel->carry_out(m_command, caller);
    if (outcome != Outcome::kDone) return outcome;
    if (!m_exit.write) memcpy(m_data.data() + m_done, &m_command->response.data, size);
    m_done += size;
    m_command = nullptr;
  }
  return Outcome::kDone;
}

// --- The vCPU's side ---

bool Vcpu::begin_region_access(const x86::Exit& exit) {
  const bool pio = exit.reason == Reason::kPio;
  auto region =
      m_vm.io_regions().find(pio ? IoBus::kPio : IoBus::kMmio, pio ? exit.port : exit.gpa, exit.size);
  if (region) m_region_access.emplace(exit, std::move(*region));
  return region.has_value();
}

// signal_arrived() publishes the signal first and looks at m_waits_for_server second; here it is the other
// way round.
Outcome Vcpu::wait_for_server(RunSignals& signals) {
  if (!m_server_wake.valid()) m_server_wake = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
  if (!m_server_wake.valid()) return Outcome::kFailed;
  signals.before_sleep();
  m_waits_for_server.store(true);
  const Outcome outcome = m_region_access->go_on({m_server_wake.get(), m_signalled});
  m_waits_for_server.store(false);
  return outcome;
}

Result<bool> Vcpu::finish_region_access(RunSignals& signals) {
  const Outcome outcome = wait_for_server(signals);
  if (outcome == Outcome::kInterrupted) return take_signal(), interrupted();
  if (outcome == Outcome::kDone) {
    m_cpu->complete_io(m_region_access->answer());
    m_region_access.reset();
    return false;
  }
  const x86::Exit exit = m_region_access->exit();
  m_region_access.reset();
  exit.reason == Reason::kPio ? report_pio(exit) : report_mmio(exit);
  return true;
}

}  // namespace anykvm::core
