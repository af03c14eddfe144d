#pragma once
// Requests of the KVM interface and arguments for them: what a client would pass, and what none should.
// Owner: one thread of a session.

#include "program.h"
#include "session.h"

namespace anykvm::fuzz {

struct Request {
  Kind kind;
  unsigned long number;
  const char* name;
};

class Arguments {
 public:
  static constexpr u64 kRamSize = 4u << 20;

  // `ram`: the only memory that guests are given.
  explicit Arguments(u8* ram);
  ~Arguments();
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  const Request& request(Random& random) const;
  // The request's number, at times with another size or direction.
  unsigned long number(Random& random, unsigned long request) const;
  unsigned long argument(Random& random, unsigned long request);

 private:
  u64 value(Random& random) const;
  u64 bad_pointer(Random& random) const;
  void fill(Random& random, unsigned long request, u8* to, u64 size) const;
  void restrict_host_memory(Random& random, unsigned long request, u8* structure, u64 size) const;

  u8* m_ram;
  u8* m_area;  // pages for structures: the last is inaccessible, the one before may only be read
};

}  // namespace anykvm::fuzz
