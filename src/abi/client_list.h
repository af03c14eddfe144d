#pragma once
// Lists of variable length as the KVM ABI has them: a header with a count, then the entries.
// Owner: nobody; functions. Any thread.

#include <errno.h>

#include <cstddef>
#include <vector>

#include "base/client_memory.h"

namespace anykvm::abi {

// Address of the entries that follow a header of `header_size` bytes.
template <class Item, class Header>
ClientPtr<Item> items_after(ClientPtr<Header> header, std::size_t header_size) {
  return ClientPtr<Item>(header.address() + header_size);
}

template <class Item>
Result<std::vector<Item>> read_items(ClientPtr<Item> from, std::size_t count) {
  std::vector<Item> items(count);
  TRY(from.read_array(items.data(), count));
  return items;
}

// Gives `items` to a client that has room for `room` of them, and their number in any case: E2BIG if they do
// not fit.
template <class Item>
Result<> write_items(ClientPtr<u32> count, u32 room, ClientPtr<Item> to, const std::vector<Item>& items) {
  TRY(count.write(static_cast<u32>(items.size())));
  if (items.size() > room) return Error{E2BIG, "the client's list is too short"};
  return to.write_array(items.data(), items.size());
}

}  // namespace anykvm::abi
