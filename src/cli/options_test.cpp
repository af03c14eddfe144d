#include "cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace anykvm::cli {
namespace {

vmm::Outcome<Options> parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "anykvm");
  return parse_options(static_cast<int>(arguments.size()), arguments.data());
}

std::string error_of(const std::vector<const char*>& arguments) {
  auto options = parse(arguments);
  return options ? "no error" : options.error().text;
}

TEST(Options, run_takes_all_options) {
  auto options = parse({"run", "--kernel", "k", "--initrd", "i", "--append", "a b", "--memory", "2G",
                        "--cpus", "4", "--accel", "kvm", "--timeout", "1.5"});
  ASSERT_TRUE(options.ok());
  const vmm::MachineConfig& machine = options.value().machine;
  EXPECT_EQ(options.value().command, Command::kRun);
  EXPECT_EQ(machine.kernel, "k");
  EXPECT_EQ(machine.initrd, "i");
  EXPECT_EQ(machine.append, "a b");
  EXPECT_EQ(machine.memory, u64{2} << 30);
  EXPECT_EQ(machine.cpus, 4u);
  EXPECT_EQ(machine.accelerator, vmm::Accelerator::kKernel);
  EXPECT_EQ(machine.time_limit, std::chrono::milliseconds(1500));
}

TEST(Options, run_defaults_to_anykvm_one_cpu_and_512_mib) {
  auto options = parse({"run", "--kernel", "k"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options.value().machine.accelerator, vmm::Accelerator::kAnykvm);
  EXPECT_EQ(options.value().machine.cpus, 1u);
  EXPECT_EQ(options.value().machine.memory, u64{512} << 20);
  EXPECT_FALSE(options.value().machine.time_limit.has_value());
}

TEST(Options, append_may_begin_with_a_dash) {
  auto options = parse({"run", "--kernel", "k", "--append=-- sh"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options.value().machine.append, "-- sh");
}

using Words = std::vector<std::string>;

TEST(Options, exec_gives_the_command_its_own_options) {
  auto options = parse({"exec", "qemu", "--prefer-hardware", "-m", "1G", "--", "--json"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options.value().command, Command::kExec);
  EXPECT_FALSE(options.value().exec.prefer_hardware);
  EXPECT_EQ(options.value().exec.command, (Words{"qemu", "--prefer-hardware", "-m", "1G", "--", "--json"}));
}

TEST(Options, exec_takes_its_options_before_the_command) {
  auto options = parse({"exec", "--prefer-hardware", "--", "qemu", "--help"});
  ASSERT_TRUE(options.ok());
  EXPECT_TRUE(options.value().exec.prefer_hardware);
  EXPECT_EQ(options.value().exec.command, (Words{"qemu", "--help"}));
}

TEST(Options, exec_of_a_command_named_like_a_subcommand_works) {
  auto options = parse({"exec", "run", "doctor"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options.value().exec.command, (Words{"run", "doctor"}));
}

TEST(Options, exec_without_a_command_says_so) {
  EXPECT_THAT(error_of({"exec"}), ::testing::HasSubstr("exec needs a command"));
  EXPECT_THAT(error_of({"exec", "--"}), ::testing::HasSubstr("exec needs a command"));
}

TEST(Options, exec_with_an_unknown_option_says_so) {
  EXPECT_THAT(error_of({"exec", "--hardware", "qemu"}), ::testing::HasSubstr("--hardware: no such option"));
}

TEST(Options, doctor_knows_json) {
  EXPECT_FALSE(parse({"doctor"}).value().json);
  EXPECT_TRUE(parse({"doctor", "--json"}).value().json);
}

TEST(Options, top_takes_a_process_and_how_often_to_look) {
  const TopOptions top = parse({"top", "42", "--interval", "0.5", "--samples", "3"}).value().top;
  EXPECT_EQ(top.process, 42);
  EXPECT_EQ(top.interval, std::chrono::milliseconds(500));
  EXPECT_EQ(top.samples, 3u);
  EXPECT_EQ(parse({"top", "1"}).value().command, Command::kTop);
}

TEST(Options, bad_arguments_of_top_are_one_sentence) {
  EXPECT_EQ(error_of({"top", "qemu"}), "top qemu: not the number of a process");
  EXPECT_EQ(error_of({"top", "1", "--interval", "0"}),
            "--interval 0: not a number of seconds from 0.01 to 3600");
  EXPECT_EQ(error_of({"top", "1", "--samples", "few"}), "--samples few: not a number");
}

TEST(Options, version_is_printed) {
  EXPECT_EQ(parse({"--version"}).value().text.substr(0, 7), "anykvm ");
  EXPECT_EQ(parse({"--version"}).value().command, Command::kPrint);
}

TEST(Options, help_names_the_commands) {
  EXPECT_NE(parse({"--help"}).value().text.find("doctor"), std::string::npos);
  EXPECT_NE(parse({"run", "--help"}).value().text.find("--kernel"), std::string::npos);
}

TEST(Options, bad_memory_is_one_sentence) {
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--memory", "1K"}), "--memory 1K: a guest needs at least 16M");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--memory", "x"}), "--memory x: not a size such as 512M or 2G");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--memory", "99999T"}),
            "--memory 99999T: more than the 64T that a guest can address");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--memory", "16777217"}),
            "--memory 16777217: not a whole number of 4K pages");
}

TEST(Options, bad_cpus_are_one_sentence) {
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--cpus", "0"}), "--cpus 0: not a number of CPUs from 1 up");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--cpus", "two"}),
            "--cpus two: not a number of CPUs from 1 up");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--cpus", "10000"}),
            "--cpus 10000: more than the 4096 that KVM knows");
}

TEST(Options, bad_timeout_and_accelerator_are_one_sentence) {
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--timeout", "0"}),
            "--timeout 0: not a number of seconds above 0");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--timeout", "nan"}),
            "--timeout nan: not a number of seconds above 0");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--accel", "tcg"}), "--accel tcg: neither anykvm nor kvm");
}

TEST(Options, missing_command_kernel_and_unknown_option_are_one_sentence) {
  EXPECT_EQ(error_of({}).find('\n'), std::string::npos);
  EXPECT_NE(error_of({}), "no error");
  EXPECT_EQ(error_of({"run"}), "--kernel is required (see anykvm --help)");
  EXPECT_EQ(error_of({"run", "--kernel", "k", "--bogus"}),
            "The following argument was not expected: --bogus (see anykvm --help)");
}

}  // namespace
}  // namespace anykvm::cli
