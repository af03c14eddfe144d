// ioregionfd (docs/ioregionfd.md, SEEDS G3). No kernel has it.
#include <anykvm/ioregion.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kMmio = 0x20000;  // behind the guest's 64 KiB
constexpr std::uint16_t kPort = 0x300;

// Two ends of a socket: commands come out of the second, where responses go in.
struct Link {
  Link() { EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0); }
  ~Link() {
    close_server();
    close(ends[0]);
  }
  void close_server() {
    if (ends[1] >= 0) close(ends[1]);
    ends[1] = -1;
  }
  // False at the end of the stream.
  bool receive(ioregionfd_cmd* command) {
    return recv(ends[1], command, sizeof *command, MSG_WAITALL) == sizeof *command;
  }
  ioregionfd_cmd received() {
    ioregionfd_cmd command{};
    EXPECT_TRUE(receive(&command));
    return command;
  }
  bool has_command(int milliseconds = 0) {
    pollfd wait{ends[1], POLLIN, 0};
    return poll(&wait, 1, milliseconds) == 1;
  }
  void respond(std::uint64_t data = 0, std::size_t size = sizeof(ioregionfd_resp)) {
    ioregionfd_resp response{};
    response.data = data;
    EXPECT_EQ(send(ends[1], &response, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
  }
  int ends[2] = {-1, -1};
};

// A server on a thread of its own that answers everything and remembers it.
class Server {
 public:
  using Answer = std::function<std::uint64_t(const ioregionfd_cmd&)>;
  explicit Server(Answer answer) : m_answer(std::move(answer)), m_thread([this] { serve(); }) {}
  ~Server() {
    shutdown(link.ends[0], SHUT_RDWR);
    m_thread.join();
  }
  std::vector<ioregionfd_cmd> commands() {
    std::lock_guard lock(m_mutex);
    return m_commands;
  }
  Link link;

 private:
  void serve() {
    ioregionfd_cmd command{};
    while (link.receive(&command)) {
      std::unique_lock lock(m_mutex);
      m_commands.push_back(command);
      lock.unlock();
      const ioregionfd_resp response{command.resp ? m_answer(command) : 0, {}};
      // Nobody may want it any longer.
      if (command.resp && send(link.ends[1], &response, sizeof response, MSG_NOSIGNAL) < 0) return;
    }
  }

  Answer m_answer;
  std::mutex m_mutex;
  std::vector<ioregionfd_cmd> m_commands;  // m_mutex
  std::thread m_thread;
};

kvm_ioregion region(std::uint64_t address, std::uint64_t size, const Link& link, std::uint32_t flags = 0,
                    std::uint64_t user_data = 0) {
  kvm_ioregion region{};
  region.guest_paddr = address;
  region.memory_size = size;
  region.user_data = user_data;
  region.read_fd = region.write_fd = link.ends[0];
  region.flags = flags;
  return region;
}

struct IoRegion : testing::Test {
  void SetUp() override {
    if (on_real_kvm()) GTEST_SKIP() << "no kernel has ioregionfd";
    make_kickable();
  }
  long set(kvm_ioregion region) { return call(guest.vm, KVM_SET_IOREGION, &region); }

  // Code whose DS is at kMmio.
  void load(std::initializer_list<std::uint8_t> code) {
    guest.set_code(code);
    guest.start_at_code();
    kvm_sregs sregs{};
    ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.ds.base = kMmio;
    sregs.ds.selector = kMmio >> 4;
    ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  }
  std::uint64_t rax() { return guest.regs().rax; }
  void expect_halt() {
    EXPECT_EQ(guest.run(), 0);
    EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  }

  // KVM_RUN that a signal ends once the server has a command.
  ioregionfd_cmd interrupted_run(Link& link) {
    const pthread_t runner = pthread_self();
    ioregionfd_cmd command{};
    std::thread later([&] {
      command = link.received();
      usleep(2'000);
      pthread_kill(runner, SIGUSR1);
    });
    EXPECT_EQ(guest.run(), -EINTR);
    EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_INTR));
    later.join();
    return command;
  }

  Guest guest;
};

// mov eax, [10H]; hlt
#define READ_AT_10H \
  { 0x66, 0xa1, 0x10, 0x00, 0xf4 }
// mov [10H], eax; hlt
#define WRITE_AT_10H \
  { 0x66, 0xa3, 0x10, 0x00, 0xf4 }

TEST_F(IoRegion, capability_tells) {
  EXPECT_EQ(call(guest.fd, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM_IOREGIONFD), 1);
  EXPECT_EQ(call(guest.vm, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM_IOREGIONFD), 1);
}

TEST_F(IoRegion, bad_arguments) {
  Link link;
  EXPECT_EQ(call(guest.vm, KVM_SET_IOREGION, kBadPointer), -EFAULT);
  EXPECT_EQ(set(region(kMmio, 0, link)), -EINVAL);
  EXPECT_EQ(set(region(~0ull - 1, 3, link)), -EINVAL);
  EXPECT_EQ(set(region(kMmio, 16, link, 8)), -EINVAL);
  EXPECT_EQ(set(region(0xfff0, 0x11, link, KVM_IOREGION_PIO)), -EINVAL);
  kvm_ioregion padded = region(kMmio, 16, link);
  padded.pad[27] = 1;
  EXPECT_EQ(set(padded), -EINVAL);
  kvm_ioregion nowhere = region(kMmio, 16, link);
  nowhere.read_fd = -1;
  EXPECT_EQ(set(nowhere), -EBADF);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  kvm_ioregion wrong_way = region(kMmio, 16, link);
  wrong_way.write_fd = pipe_ends[0];
  EXPECT_EQ(set(wrong_way), -EBADF);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

TEST_F(IoRegion, regions_do_not_overlap) {
  Link link;
  EXPECT_EQ(set(region(kMmio, 16, link)), 0);
  EXPECT_EQ(set(region(kMmio, 16, link)), -EEXIST);
  EXPECT_EQ(set(region(kMmio - 1, 2, link)), -EEXIST);
  EXPECT_EQ(set(region(kMmio + 15, 2, link)), -EEXIST);
  EXPECT_EQ(set(region(kMmio - 8, 64, link)), -EEXIST);
  EXPECT_EQ(set(region(kMmio + 16, 1, link)), 0);
  EXPECT_EQ(set(region(kMmio - 1, 1, link)), 0);
  EXPECT_EQ(set(region(0x100, 16, link, KVM_IOREGION_PIO)), 0);
  EXPECT_EQ(set(region(kMmio, 8, link, KVM_IOREGION_DEASSIGN)), -ENOENT);
  EXPECT_EQ(set(region(0x100, 16, link, KVM_IOREGION_DEASSIGN)), -ENOENT);
  EXPECT_EQ(set(region(kMmio, 16, link, KVM_IOREGION_DEASSIGN)), 0);
  EXPECT_EQ(set(region(kMmio, 16, link)), 0);
}

TEST_F(IoRegion, at_most_a_thousand) {
  Link link;
  for (unsigned i = 0; i < 1000; ++i) ASSERT_EQ(set(region(kMmio + i, 1, link)), 0);
  EXPECT_EQ(set(region(kMmio + 1000, 1, link)), -ENOSPC);
}

TEST_F(IoRegion, read_of_memory) {
  Server server([](const ioregionfd_cmd&) { return 0x8877665544332211; });
  ASSERT_EQ(set(region(kMmio, 0x100, server.link, 0, 0xfeedface12345678)), 0);
  load(READ_AT_10H);
  expect_halt();
  EXPECT_EQ(rax(), 0x44332211u);
  const auto commands = server.commands();
  ASSERT_EQ(commands.size(), 1u);
  EXPECT_EQ(commands[0].cmd, IOREGIONFD_CMD_READ);
  EXPECT_EQ(commands[0].size_exponent, IOREGIONFD_SIZE_32BIT);
  EXPECT_EQ(commands[0].resp, 1);
  EXPECT_EQ(commands[0].user_data, 0xfeedface12345678u);
  EXPECT_EQ(commands[0].offset, 0x10u);
  EXPECT_EQ(commands[0].data, 0u);
}

TEST_F(IoRegion, write_of_memory) {
  Server server([](const ioregionfd_cmd&) { return 0; });
  ASSERT_EQ(set(region(kMmio + 0x10, 4, server.link)), 0);
  load({0x66, 0xb8, 0x78, 0x56, 0x34, 0x12,  // mov eax, 12345678H
        0x66, 0xa3, 0x10, 0x00,              // mov [10H], eax
        0xa3, 0x12, 0x00, 0xa2, 0x10, 0x00,  // mov [12H], ax; mov [10H], al
        0xf4});
  expect_halt();
  const auto commands = server.commands();
  ASSERT_EQ(commands.size(), 3u);
  EXPECT_EQ(commands[0].cmd, IOREGIONFD_CMD_WRITE);
  EXPECT_EQ(commands[0].resp, 1);
  EXPECT_EQ(commands[0].offset, 0u);
  EXPECT_EQ(commands[0].data, 0x12345678u);
  EXPECT_EQ(commands[1].offset, 2u);
  EXPECT_EQ(commands[1].size_exponent, IOREGIONFD_SIZE_16BIT);
  EXPECT_EQ(commands[1].data, 0x5678u);
  EXPECT_EQ(commands[2].size_exponent, IOREGIONFD_SIZE_8BIT);
  EXPECT_EQ(commands[2].data, 0x78u);
}

TEST_F(IoRegion, ports) {
  Server server([](const ioregionfd_cmd& command) { return 0x40 + command.offset; });
  ASSERT_EQ(set(region(kPort, 8, server.link, KVM_IOREGION_PIO, 7)), 0);
  // mov dx, 304H; in al, dx; inc dx; out dx, ax; hlt
  load({0xba, 0x04, 0x03, 0xec, 0x42, 0xef, 0xf4});
  expect_halt();
  const auto commands = server.commands();
  ASSERT_EQ(commands.size(), 2u);
  EXPECT_EQ(commands[0].cmd, IOREGIONFD_CMD_READ);
  EXPECT_EQ(commands[0].offset, 4u);
  EXPECT_EQ(commands[1].cmd, IOREGIONFD_CMD_WRITE);
  EXPECT_EQ(commands[1].offset, 5u);
  EXPECT_EQ(commands[1].data & 0xff, 0x44u);
  EXPECT_EQ(commands[1].user_data, 7u);
}

TEST_F(IoRegion, string_instructions) {
  std::uint64_t next = 0;
  Server server([&next](const ioregionfd_cmd&) { return ++next; });
  ASSERT_EQ(set(region(kPort, 4, server.link, KVM_IOREGION_PIO)), 0);
  // mov cx, 40; mov dx, 300H; mov di, 3000H; cld; rep insw; mov cx, 3; mov si, 3000H; rep cs outsw; hlt
  load({0xb9, 40, 0x00, 0xba, 0x00, 0x03, 0xbf, 0x00, 0x30, 0xfc, 0xf3, 0x6d,  //
        0xb9, 3,  0x00, 0xbe, 0x00, 0x30, 0xf3, 0x2e, 0x6f, 0xf4});
  expect_halt();
  for (unsigned i = 0; i < 40; ++i) EXPECT_EQ(guest.memory.data()[0x3000 + 2 * i], i + 1);
  const auto commands = server.commands();
  ASSERT_EQ(commands.size(), 43u);
  for (unsigned i = 0; i < 40; ++i) EXPECT_EQ(commands[i].offset, 0u);
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(commands[40 + i].data, i + 1);
}

// Across a page the access has two parts, of sizes that commands do not have: 1 and 3 bytes.
TEST_F(IoRegion, access_in_several_parts) {
  Server server(
      [](const ioregionfd_cmd& command) { return command.offset == 0x1001 ? 0x3322 : command.offset; });
  ASSERT_EQ(set(region(kMmio, 0x2000, server.link)), 0);
  load({0x66, 0xa1, 0xff, 0x0f, 0xf4});  // mov eax, [FFFH]; hlt
  server.commands();
  expect_halt();
  const auto commands = server.commands();
  std::vector<std::pair<std::uint64_t, unsigned>> parts;
  for (const auto& command : commands) parts.emplace_back(command.offset, 1u << command.size_exponent);
  EXPECT_EQ(parts, (std::vector<std::pair<std::uint64_t, unsigned>>{{0xfff, 1}, {0x1000, 2}, {0x1002, 1}}));
  EXPECT_EQ(rax(), 0x021000ffu);
}

TEST_F(IoRegion, posted_writes_wait_for_nobody) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_POSTED_WRITES)), 0);
  // mov al, 1; mov [0], al; inc al; mov [1], al; hlt
  load({0xb0, 0x01, 0xa2, 0x00, 0x00, 0xfe, 0xc0, 0xa2, 0x01, 0x00, 0xf4});
  expect_halt();
  for (unsigned i = 0; i < 2; ++i) {
    const ioregionfd_cmd command = link.received();
    EXPECT_EQ(command.resp, 0);
    EXPECT_EQ(command.offset, i);
    EXPECT_EQ(command.data, i + 1);
  }
}

// As many as fit; then the guest waits until the server has read some, and a signal calls it away.
TEST_F(IoRegion, posted_writes_wait_for_a_slow_server) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_POSTED_WRITES)), 0);
  // mov cx, 20000; again: mov [0], cx; loop again; hlt
  load({0xb9, 0x20, 0x4e, 0x89, 0x0e, 0x00, 0x00, 0xe2, 0xfa, 0xf4});
  const pthread_t runner = pthread_self();
  std::atomic<bool> returned{false};
  std::thread kick([&] {
    while (!returned) pthread_kill(runner, SIGUSR1), usleep(20'000);
  });
  while (guest.run() == 0) ASSERT_NE(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  returned = true;
  kick.join();
  std::thread server([&] {
    for (unsigned i = 20000; i > 0; --i) ASSERT_EQ(link.received().data, i);
  });
  long result;
  while ((result = guest.run()) == -EINTR) {
  }
  EXPECT_EQ(result, 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  server.join();
}

TEST_F(IoRegion, seed_G3_signal_during_a_read) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  EXPECT_EQ(interrupted_run(link).offset, 0x10u);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
  link.respond(0x1234);
  expect_halt();
  EXPECT_EQ(rax(), 0x1234u);
  EXPECT_FALSE(link.has_command());
}

TEST_F(IoRegion, seed_G3_signal_during_a_write) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(WRITE_AT_10H);
  EXPECT_EQ(interrupted_run(link).cmd, IOREGIONFD_CMD_WRITE);
  link.respond();
  expect_halt();
  EXPECT_FALSE(link.has_command());
}

TEST_F(IoRegion, seed_G3_signals_between_the_parts_of_an_access) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x2000, link)), 0);
  load({0x66, 0xa1, 0xfe, 0x0f, 0xf4});  // mov eax, [FFEH]; hlt
  EXPECT_EQ(interrupted_run(link).offset, 0xffeu);
  link.respond(0x2211);
  EXPECT_EQ(interrupted_run(link).offset, 0x1000u);
  link.respond(0x4433);
  expect_halt();
  EXPECT_EQ(rax(), 0x44332211u);
  EXPECT_FALSE(link.has_command());
}

TEST_F(IoRegion, seed_G3_signal_in_the_middle_of_a_response) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  interrupted_run(link);
  const ioregionfd_resp response{0x5678, {}};
  ASSERT_EQ(send(link.ends[1], &response, 5, 0), 5);
  const pthread_t runner = pthread_self();
  std::thread kick([&] { usleep(5'000), pthread_kill(runner, SIGUSR1); });
  EXPECT_EQ(guest.run(), -EINTR);
  kick.join();
  ASSERT_EQ(send(link.ends[1], reinterpret_cast<const char*>(&response) + 5, sizeof response - 5, 0), 27);
  expect_halt();
  EXPECT_EQ(rax(), 0x5678u);
}

TEST_F(IoRegion, immediate_exit_leaves_the_exchange_alone) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  interrupted_run(link);
  link.respond(9);
  guest.shared->immediate_exit = 1;
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
  guest.shared->immediate_exit = 0;
  expect_halt();
  EXPECT_EQ(rax(), 9u);
}

// The client answers one access by immediate_exit, and the next is a server's.
TEST_F(IoRegion, immediate_exit_completes_the_client_s_access_only) {
  Link link;
  ASSERT_EQ(set(region(kMmio + 0x1000, 0x100, link)), 0);
  load({0x66, 0xa1, 0xfe, 0x0f, 0xf4});  // mov eax, [FFEH]: 2 bytes of the client's, 2 of the server's
  EXPECT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, kMmio + 0xffe);
  memcpy(guest.shared->mmio.data, "\x11\x22", 2);
  guest.shared->immediate_exit = 1;
  EXPECT_EQ(guest.run(), -EINTR);
  guest.shared->immediate_exit = 0;
  std::thread server([&] {
    EXPECT_EQ(link.received().offset, 0u);
    link.respond(0x4433);
  });
  expect_halt();
  server.join();
  EXPECT_EQ(rax(), 0x44332211u);
}

TEST_F(IoRegion, several_regions_on_one_descriptor) {
  Server server([](const ioregionfd_cmd& command) { return command.user_data * 16 + command.offset; });
  ASSERT_EQ(set(region(kMmio, 0x10, server.link, 0, 1)), 0);
  ASSERT_EQ(set(region(kMmio + 0x10, 0x10, server.link, 0, 2)), 0);
  ASSERT_EQ(set(region(kPort, 0x10, server.link, KVM_IOREGION_PIO, 3)), 0);
  // mov al, [4]; mov bl, [12H]; mov dx, 301H; in al, dx (to cl); hlt
  load({0xa0, 0x04, 0x00, 0x88, 0xc4, 0x8a, 0x1e, 0x12, 0x00, 0xba, 0x01, 0x03, 0xec, 0x88, 0xc1, 0xf4});
  expect_halt();
  const kvm_regs regs = guest.regs();
  EXPECT_EQ(regs.rax >> 8 & 0xff, 0x14u);
  EXPECT_EQ(regs.rbx & 0xff, 0x22u);
  EXPECT_EQ(regs.rcx & 0xff, 0x31u);
}

TEST_F(IoRegion, access_that_is_only_partly_inside_is_the_client_s) {
  Link link;
  ASSERT_EQ(set(region(kMmio + 0x12, 0x100, link)), 0);
  load(READ_AT_10H);
  EXPECT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.len, 4u);
}

TEST_F(IoRegion, ioeventfd_within_a_region_comes_first) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_POSTED_WRITES)), 0);
  const int event = eventfd(0, EFD_NONBLOCK);
  kvm_ioeventfd doorbell{};
  doorbell.addr = kMmio + 0x10;
  doorbell.len = 4;
  doorbell.fd = event;
  ASSERT_EQ(call(guest.vm, KVM_IOEVENTFD, &doorbell), 0);
  load(WRITE_AT_10H);
  expect_halt();
  eventfd_t count = 0;
  EXPECT_EQ(eventfd_read(event, &count), 0);
  EXPECT_FALSE(link.has_command());
  close(event);
}

TEST_F(IoRegion, pipes_will_do) {
  int commands[2], responses[2];
  ASSERT_EQ(pipe(commands), 0);
  ASSERT_EQ(pipe(responses), 0);
  Link link;
  kvm_ioregion pipes = region(kMmio, 0x100, link);
  pipes.read_fd = responses[0];
  pipes.write_fd = commands[1];
  ASSERT_EQ(set(pipes), 0);
  load(READ_AT_10H);
  std::thread server([&] {
    ioregionfd_cmd command{};
    EXPECT_EQ(read(commands[0], &command, sizeof command), static_cast<ssize_t>(sizeof command));
    const ioregionfd_resp response{0x77, {}};
    EXPECT_EQ(write(responses[1], &response, sizeof response), static_cast<ssize_t>(sizeof response));
  });
  expect_halt();
  server.join();
  EXPECT_EQ(rax(), 0x77u);

  // The reader is gone: no SIGPIPE, which would end this program.
  close(commands[0]);
  guest.start_at_code();
  EXPECT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
  for (int fd : {commands[1], responses[0], responses[1]}) close(fd);
}

// --- servers that do not serve ---

struct IoRegionFailure : IoRegion {
  // The client gets the access, answers it, and the guest goes on.
  void expect_client_answers() {
    EXPECT_EQ(guest.run(), 0);
    expect_client_has_it();
  }
  void expect_client_has_it() {
    ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
    EXPECT_EQ(guest.shared->mmio.phys_addr, kMmio + 0x10);
    EXPECT_EQ(guest.shared->mmio.len, 4u);
    EXPECT_EQ(guest.shared->mmio.is_write, 0);
    memcpy(guest.shared->mmio.data, "\x01\x02\x03\x04", 4);
    expect_halt();
    EXPECT_EQ(rax(), 0x04030201u);
  }
};

TEST_F(IoRegionFailure, server_is_gone) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  link.close_server();
  expect_client_answers();
  guest.start_at_code();
  expect_client_answers();
}

TEST_F(IoRegionFailure, server_goes_instead_of_responding) {
  for (std::size_t part : {0u, 7u}) {
    Link link;
    ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
    load(READ_AT_10H);
    std::thread server([&] {
      link.received();
      if (part) link.respond(1, part);
      link.close_server();
    });
    expect_client_answers();
    server.join();
    ASSERT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_DEASSIGN)), 0);
  }
}

TEST_F(IoRegionFailure, response_that_nobody_asked_for) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  link.respond(1);
  expect_client_answers();
  EXPECT_FALSE(link.has_command());
}

TEST_F(IoRegionFailure, response_to_a_posted_write) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_POSTED_WRITES)), 0);
  load(WRITE_AT_10H);
  expect_halt();
  link.received();
  link.respond();
  load(READ_AT_10H);
  expect_client_answers();
}

TEST_F(IoRegionFailure, region_is_taken_away_while_the_guest_waits) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  std::thread later([&] {
    link.received();
    EXPECT_EQ(set(region(kMmio, 0x100, link, KVM_IOREGION_DEASSIGN)), 0);
  });
  EXPECT_EQ(guest.run(), 0);
  later.join();
  expect_client_has_it();
}

TEST_F(IoRegionFailure, server_answers_anew_after_another_registration) {
  Link gone;
  ASSERT_EQ(set(region(kMmio, 0x100, gone)), 0);
  gone.close_server();
  load(READ_AT_10H);
  expect_client_answers();
  ASSERT_EQ(set(region(kMmio, 0x100, gone, KVM_IOREGION_DEASSIGN)), 0);
  Server server([](const ioregionfd_cmd&) { return 5; });
  ASSERT_EQ(set(region(kMmio, 0x100, server.link)), 0);
  load(READ_AT_10H);
  expect_halt();
  EXPECT_EQ(rax(), 5u);
}

// The client puts the vCPU elsewhere while a response is due: nobody takes it for another.
TEST_F(IoRegionFailure, vcpu_is_moved_elsewhere_in_the_middle) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load({0xf4, 0x66, 0xa1, 0x10, 0x00, 0xf4});
  kvm_regs regs = guest.regs();
  regs.rip = Guest::kCode + 1;
  guest.set_regs(regs);
  interrupted_run(link);
  link.respond(1);
  regs.rip = Guest::kCode;
  regs.rax = 0x99;
  guest.set_regs(regs);
  expect_halt();
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 1);
  EXPECT_EQ(rax(), 0x99u);
  std::thread server([&] {
    link.received();
    link.respond(2);
  });
  expect_halt();
  server.join();
  EXPECT_EQ(rax(), 2u);
}

// Whoever answers, the server or the client, the guest gets through.
TEST_F(IoRegionFailure, regions_come_and_go_under_a_running_cpu) {
  Server server([](const ioregionfd_cmd&) { return 7; });
  // mov cx, 3000; again: mov al, [10H]; cmp al, 7; jne bad; loop again; hlt; bad: out 11H, al
  load({0xb9, 0xb8, 0x0b, 0xa0, 0x10, 0x00, 0x3c, 0x07, 0x75, 0x03, 0xe2, 0xf7, 0xf4, 0xe6, 0x11});
  std::atomic<bool> done{false};
  std::thread changer([&] {
    while (!done) {
      EXPECT_EQ(set(region(kMmio, 0x100, server.link)), 0);
      usleep(200);
      EXPECT_EQ(set(region(kMmio, 0x100, server.link, KVM_IOREGION_DEASSIGN)), 0);
      // A response that nobody waits for any longer belongs to the region that is gone.
      char byte[64];
      while (recv(server.link.ends[0], byte, sizeof byte, MSG_DONTWAIT) > 0) {
      }
    }
  });
  unsigned answered = 0;
  while (guest.run() == 0 && guest.shared->exit_reason == KVM_EXIT_MMIO) {
    guest.shared->mmio.data[0] = 7;
    ++answered;
  }
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  done = true;
  changer.join();
  EXPECT_GE(server.commands().size() + answered, 3000u);
}

// --- two CPUs at one server ---

struct SecondCpu {
  explicit SecondCpu(Guest& guest) : vcpu(call(guest.vm, KVM_CREATE_VCPU, 1)) {
    size = static_cast<std::size_t>(call(guest.fd, KVM_GET_VCPU_MMAP_SIZE));
    shared = static_cast<kvm_run*>(kvm_mmap(size, vcpu));
    kvm_sregs sregs{};
    EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs = guest.regs();
    EXPECT_EQ(call(vcpu, KVM_SET_REGS, &regs), 0);
  }
  ~SecondCpu() { munmap(shared, size); }
  Handle vcpu;
  std::size_t size;
  kvm_run* shared;
};

TEST_F(IoRegion, cpu_that_was_called_away_does_not_block_another) {
  Link link;
  ASSERT_EQ(set(region(kMmio, 0x100, link)), 0);
  load(READ_AT_10H);
  SecondCpu second(guest);
  interrupted_run(link);
  std::thread server([&] {
    usleep(5'000);
    EXPECT_FALSE(link.has_command());  // one at a time
    link.respond(1);
    link.received();
    link.respond(2);
  });
  EXPECT_EQ(call(second.vcpu, KVM_RUN), 0);
  EXPECT_EQ(second.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  server.join();
  kvm_regs regs{};
  EXPECT_EQ(call(second.vcpu, KVM_GET_REGS, &regs), 0);
  EXPECT_EQ(regs.rax, 2u);
  expect_halt();
  EXPECT_EQ(rax(), 1u);
  EXPECT_FALSE(link.has_command());
}

// Each adds up what it reads: every response goes to whom it belongs, signals or not.
TEST_F(IoRegion, two_cpus_and_many_signals) {
  Server server([](const ioregionfd_cmd& command) { return command.offset + 1; });
  ASSERT_EQ(set(region(kMmio, 0x100, server.link)), 0);
  // mov cx, 2000; xor ebx, ebx; again: movzx eax, byte [si]; add ebx, eax; loop again; hlt
  load({0xb9, 0xd0, 0x07, 0x66, 0x31, 0xdb, 0x66, 0x0f, 0xb6, 0x04, 0x66, 0x01, 0xc3, 0xe2, 0xf7, 0xf4});
  SecondCpu second(guest);
  kvm_regs regs = guest.regs();
  regs.rsi = 2;
  guest.set_regs(regs);
  regs.rsi = 6;
  EXPECT_EQ(call(second.vcpu, KVM_SET_REGS, &regs), 0);
  std::atomic<unsigned> running{2};
  auto run = [&](int vcpu) {
    long result;
    while ((result = call(vcpu, KVM_RUN)) == -EINTR) {
    }
    EXPECT_EQ(result, 0);
    --running;
    // Signals may still come: the thread stays until nobody sends any.
    while (running) usleep(1000);
  };
  std::thread first_thread(run, static_cast<int>(guest.vcpu)),
      second_thread(run, static_cast<int>(second.vcpu));
  while (running == 2) {
    pthread_kill(first_thread.native_handle(), SIGUSR1);
    usleep(100);
    pthread_kill(second_thread.native_handle(), SIGUSR1);
    usleep(100);
  }
  first_thread.join();
  second_thread.join();
  EXPECT_EQ(guest.regs().rbx, 2000u * 3);
  EXPECT_EQ(call(second.vcpu, KVM_GET_REGS, &regs), 0);
  EXPECT_EQ(regs.rbx, 2000u * 7);
  EXPECT_EQ(server.commands().size(), 4000u);
}

}  // namespace
}  // namespace anykvm::test
