#pragma once
// `anykvm doctor`: what this machine offers to the engine, what is missing, and what that costs.
// Owner: main(). One thread; looks only, changes nothing.

#include <string>
#include <string_view>
#include <vector>

namespace anykvm::cli {

enum class Finding { kPresent, kMissing, kBlocking };  // blocking: anykvm cannot work without it

struct Check {
  std::string name;
  Finding finding;
  std::string detail;  // what was found
  std::string cost;    // what its absence costs; empty if present
};

struct Report {
  std::vector<Check> checks;
  bool usable() const;
};

Report examine_host();
std::string to_text(const Report& report);
std::string to_json(const Report& report);

// `text` as a JSON string with its quotes.
std::string json_string(std::string_view text);

}  // namespace anykvm::cli
