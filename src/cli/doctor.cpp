#include "cli/doctor.h"

#include <fmt/format.h>

#include <algorithm>

#include "anykvm/anykvm.h"
#include "cli/host_checks.h"

namespace anykvm::cli {
namespace {

const char* word(Finding finding) {
  switch (finding) {
    case Finding::kPresent:
      return "yes";
    case Finding::kMissing:
      return "no";
    case Finding::kBlocking:
      return "missing";
  }
  return "";
}

}  // namespace

bool Report::usable() const {
  return std::none_of(checks.begin(), checks.end(),
                      [](const Check& c) { return c.finding == Finding::kBlocking; });
}

Report examine_host() {
  Report report;
  for (auto look : {check_bmi2, check_fsgsbase, check_xsave, check_avx2, check_avx512, check_jit_memory,
                    check_userfaultfd, check_write_protection, check_huge_pages, check_real_kvm}) {
    report.checks.push_back(look());
  }
  return report;
}

std::string to_text(const Report& report) {
  std::string text;
  for (const Check& check : report.checks) {
    text += fmt::format("{:<28} {:<8} {}\n", check.name, word(check.finding), check.detail);
    if (!check.cost.empty()) text += fmt::format("{:<37} cost: {}\n", "", check.cost);
  }
  text += report.usable() ? "anykvm can run guests here.\n" : "anykvm cannot run guests here.\n";
  return text;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string to_json(const Report& report) {
  std::string rows;
  for (const Check& check : report.checks) {
    if (!rows.empty()) rows += ",";
    rows += fmt::format("\n    {{\"name\": {}, \"status\": {}, \"detail\": {}, \"cost\": {}}}",
                        json_string(check.name), json_string(word(check.finding)), json_string(check.detail),
                        json_string(check.cost));
  }
  return fmt::format("{{\n  \"version\": \"{}\",\n  \"usable\": {},\n  \"checks\": [{}\n  ]\n}}\n",
                     ANYKVM_VERSION, report.usable(), rows);
}

}  // namespace anykvm::cli
