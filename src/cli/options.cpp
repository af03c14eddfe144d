#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>
#include <string_view>
#include <vector>

#include "anykvm/anykvm.h"
#include "cli/size.h"
#include "vmm/guest_memory.h"

namespace anykvm::cli {
namespace {

using vmm::failure;
using vmm::Outcome;

constexpr u64 kLeastMemory = 16 * vmm::kMiB;
constexpr u64 kMostMemory = u64{1} << 46;  // the guest's physical addresses must fit what CPUs have

// What the user typed, before it is checked. Texts, so that the sentences about them are ours.
struct Texts {
  std::string kernel, initrd, append, memory = "512M", cpus = "1", accelerator = "anykvm", timeout;
  std::string process, interval = "1", samples = "0";  // of top
};

Outcome<u64> check_memory(const std::string& text) {
  auto size = parse_size(text);
  if (!size) return failure("--memory {}: not a size such as 512M or 2G", text);
  if (*size < kLeastMemory) return failure("--memory {}: a guest needs at least 16M", text);
  if (*size > kMostMemory) return failure("--memory {}: more than the 64T that a guest can address", text);
  if (*size % kPageSize) return failure("--memory {}: not a whole number of 4K pages", text);
  return *size;
}

template <class Number>
std::optional<Number> parse_number(const std::string& text) {
  Number number{};
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || rest != end) return std::nullopt;
  return number;
}

Outcome<u32> check_cpus(const std::string& text) {
  constexpr u32 kMostCpus = 4096;  // KVM_MAX_VCPUS; the accelerator may allow fewer and says so itself
  auto number = parse_number<u32>(text);
  if (!number || *number == 0) return failure("--cpus {}: not a number of CPUs from 1 up", text);
  if (*number > kMostCpus) return failure("--cpus {}: more than the {} that KVM knows", text, kMostCpus);
  return *number;
}

Outcome<vmm::Accelerator> check_accelerator(const std::string& text) {
  if (text == "anykvm") return vmm::Accelerator::kAnykvm;
  if (text == "kvm") return vmm::Accelerator::kKernel;
  return failure("--accel {}: neither anykvm nor kvm", text);
}

Outcome<std::optional<std::chrono::nanoseconds>> check_timeout(const std::string& text) {
  constexpr double kMost = 1e9;  // 31 years; keeps nanoseconds within 64 bits
  if (text.empty()) return std::optional<std::chrono::nanoseconds>();
  auto seconds = parse_number<double>(text);
  if (!seconds || !(*seconds > 0) || *seconds > kMost) {
    return failure("--timeout {}: not a number of seconds above 0", text);
  }
  return std::optional(std::chrono::nanoseconds(static_cast<i64>(*seconds * 1e9)));
}

Outcome<vmm::MachineConfig> check_run(const Texts& texts) {
  vmm::MachineConfig config;
  if (texts.kernel.empty()) return failure("--kernel needs a file name");
  config.kernel = texts.kernel;
  config.initrd = texts.initrd;
  config.append = texts.append;
  config.memory = TRY(check_memory(texts.memory));
  config.cpus = TRY(check_cpus(texts.cpus));
  config.accelerator = TRY(check_accelerator(texts.accelerator));
  config.time_limit = TRY(check_timeout(texts.timeout));
  return config;
}

Outcome<TopOptions> check_top(const Texts& texts) {
  constexpr double kLongest = 3600;
  TopOptions top;
  auto process = parse_number<int>(texts.process);
  if (!process || *process <= 0) return failure("top {}: not the number of a process", texts.process);
  auto seconds = parse_number<double>(texts.interval);
  if (!seconds || !(*seconds >= 0.01) || *seconds > kLongest)
    return failure("--interval {}: not a number of seconds from 0.01 to 3600", texts.interval);
  auto samples = parse_number<u32>(texts.samples);
  if (!samples) return failure("--samples {}: not a number", texts.samples);
  top.process = *process;
  top.interval = std::chrono::nanoseconds(static_cast<i64>(*seconds * 1e9));
  top.samples = *samples;
  return top;
}

// CLI11's messages may have several lines.
std::string first_line(std::string text) { return text.substr(0, text.find('\n')); }

void add_run_options(CLI::App& run, Texts& texts) {
  run.add_option("--kernel", texts.kernel, "Linux kernel: bzImage or ELF vmlinux")
      ->type_name("FILE")
      ->required();
  run.add_option("--initrd", texts.initrd, "initial RAM disk")->type_name("FILE");
  run.add_option("--append", texts.append, "added to the kernel's command line")->type_name("TEXT");
  run.add_option("--memory", texts.memory, "guest memory, such as 512M or 2G")
      ->type_name("SIZE")
      ->capture_default_str();
  run.add_option("--cpus", texts.cpus, "number of virtual CPUs")->type_name("N")->capture_default_str();
  run.add_option("--accel", texts.accelerator, "anykvm, or the machine's own /dev/kvm")
      ->type_name("anykvm|kvm")
      ->capture_default_str();
  run.add_option("--timeout", texts.timeout, "stop after so long, with exit code 124")->type_name("SECONDS");
}

// Everything from the command's name on is the command's, also what looks like an option of ours.
CLI::App* add_exec(CLI::App& app, ExecOptions& options) {
  CLI::App* exec =
      app.add_subcommand("exec", "run COMMAND [ARGUMENT...], and what it starts, with anykvm as /dev/kvm");
  exec->add_flag("--prefer-hardware", options.prefer_hardware,
                 "use the machine's own /dev/kvm if a virtual CPU can be made there, else anykvm");
  exec->add_option("--argv0", options.argv0,
                   "what the command is told that it was called (with an equals sign)")
      ->type_name("NAME");
  exec->prefix_command();
  exec->footer("The first word that is no option of exec is the command; \"--\" may stand before it.");
  return exec;
}

CLI::App* add_top(CLI::App& app, Texts& texts) {
  CLI::App* top = app.add_subcommand("top", "show what a process that runs guests on anykvm does");
  top->add_option("process", texts.process, "its number")->type_name("PID")->required();
  top->add_option("--interval", texts.interval, "from one table to the next")
      ->type_name("SECONDS")
      ->capture_default_str();
  top->add_option("--samples", texts.samples, "how many tables; 0: until it ends")
      ->type_name("N")
      ->capture_default_str();
  return top;
}

// CLI11 would take a "--" as the end of the subcommand: without it, the command is the first word that is no
// option.
std::vector<const char*> without_separator(int argc, const char* const* argv) {
  std::vector<const char*> words(argv, argv + argc);
  if (argc < 2 || std::string_view(words[1]) != "exec") return words;
  auto end = std::find_if(words.begin() + 2, words.end(),
                          [](std::string_view word) { return word == "--" || !word.starts_with('-'); });
  if (end != words.end() && std::string_view(*end) == "--") words.erase(end);
  return words;
}

Outcome<std::vector<std::string>> check_command(const std::vector<std::string>& words) {
  if (words.empty()) return failure("exec needs a command (see anykvm exec --help)");
  if (words.front().starts_with('-'))
    return failure("exec {}: no such option (see anykvm exec --help)", words.front());
  return words;
}

}  // namespace

Outcome<Options> parse_options(int argc, const char* const* argv) {
  CLI::App app("anykvm: the Linux KVM API for machines without hardware virtualization", "anykvm");
  app.set_version_flag("--version", "anykvm " ANYKVM_VERSION);
  app.require_subcommand(1);
  Texts texts;
  Options options;
  CLI::App* run = app.add_subcommand("run", "boot a Linux guest with its serial console on this terminal");
  add_run_options(*run, texts);
  CLI::App* exec = add_exec(app, options.exec);
  CLI::App* doctor =
      app.add_subcommand("doctor", "tell what this machine offers, what is missing and what that costs");
  doctor->add_flag("--json", options.json, "as JSON");
  CLI::App* top = add_top(app, texts);
  // CLI11 reports everything by exceptions; none leaves this function.
  try {
    const auto words = without_separator(argc, argv);
    app.parse(static_cast<int>(words.size()), words.data());
  } catch (const CLI::CallForVersion& version) {
    options.text = std::string(version.what()) + "\n";
    return options;
  } catch (const CLI::CallForHelp&) {
    options.text = app.help();
    return options;
  } catch (const CLI::CallForAllHelp&) {
    options.text = app.help("", CLI::AppFormatMode::All);
    return options;
  } catch (const CLI::Error& error) {
    return failure("{} (see anykvm --help)", first_line(error.what()));
  }
  options.command = doctor->parsed() ? Command::kDoctor
                    : exec->parsed() ? Command::kExec
                    : top->parsed()  ? Command::kTop
                                     : Command::kRun;
  if (exec->parsed()) options.exec.command = TRY(check_command(exec->remaining()));
  if (top->parsed()) options.top = TRY(check_top(texts));
  if (run->parsed()) options.machine = TRY(check_run(texts));
  return options;
}

}  // namespace anykvm::cli
