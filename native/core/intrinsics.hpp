// The compiler's intrinsics, whose headers compile slowly: only kernels include this.
#pragma once

#include "core/isa.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
