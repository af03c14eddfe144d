#pragma once
// Every encoding, one after the other: what a run has had of those that the host runs (--coverage), and what
// the host runs although it is undefined here (--undefined). Owner: main(). One thread.

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "native_batch.h"
#include "stream.h"

namespace anykvm::isa {

// An instruction's bytes; what follows it is zero.
using Encoded = std::array<u8, 15>;

// An encoding's outer form: mnemonic, mode, opcode, prefixes that count, length, memory or register.
using EncodingForm = std::tuple<u16, unsigned, u64>;
EncodingForm form_of(const x86::Decoded& decoded);

class Coverage {
 public:
  void carried_out(const Stream& stream, std::size_t instructions);
  // How much of what the host runs that is, and each mnemonic that it has not.
  std::string report(NativeBatch& host) const;

 private:
  std::set<EncodingForm> m_forms;
};

// Encodings that are #UD here and that the host runs: one line for each opcode.
std::string defined_by_the_host(NativeBatch& host);

}  // namespace anykvm::isa
