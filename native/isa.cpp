// Compiled once per instruction set, with that set's flags and NORMWRIGHT_ISA as its name. Includes no templates of the
// standard library: the linker could keep this file's copy of one, built for instructions that another machine lacks.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define NORMWRIGHT_TEXT(name) #name
#define NORMWRIGHT_NAME(name) NORMWRIGHT_TEXT(name)

namespace normwright::NORMWRIGHT_ISA {

#include "pack.inl"
#include "strip.inl"
#include "moments.inl"
#include "apply.inl"
#include "grad_sums.inl"
#include "grad_apply.inl"
#include "merge.inl"
#include "floor.inl"

template <class T>
constexpr Kernels<T> table{moments<T>, apply<T>, grad_sums<T>, grad_apply<T>, copy<T>, triad<T>};

extern const Isa isa;
const Isa isa{NORMWRIGHT_NAME(NORMWRIGHT_ISA), table<float>, table<double>, merge_moments,
              merge_sums};

}  // namespace normwright::NORMWRIGHT_ISA
