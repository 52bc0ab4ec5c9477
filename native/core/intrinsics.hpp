// The instruction sets' own functions, which are long to read: for kernels alone.
#pragma once

#include "core/isa.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
