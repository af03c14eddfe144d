#pragma once
// The questions that `anykvm doctor` asks the machine, one function each.
// Owner: nobody. One thread; each leaves nothing behind.

#include "cli/doctor.h"

namespace anykvm::cli {

Check check_bmi2();
Check check_fsgsbase();
Check check_xsave();
Check check_avx2();
Check check_avx512();
Check check_jit_memory();
Check check_userfaultfd();
Check check_write_protection();
Check check_huge_pages();
Check check_real_kvm();

}  // namespace anykvm::cli
