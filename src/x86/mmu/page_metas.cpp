// PageMetas: an anonymous mapping, whose pages are zero and come when they are touched.

#include <sys/mman.h>

#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

static_assert(std::is_trivially_destructible_v<PageMeta>, "zero bytes are a PageMeta; nobody ends one");

std::shared_ptr<PageMetas> PageMetas::create(u64 pages) {
  void* memory = mmap(nullptr, pages * sizeof(PageMeta), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  return std::shared_ptr<PageMetas>(new PageMetas(static_cast<PageMeta*>(memory), pages));
}

PageMetas::~PageMetas() { munmap(m_pages, m_size * sizeof(PageMeta)); }

}  // namespace anykvm::x86
