// What the bindings share: bind_python.cpp, which takes addresses, and those that take torch's tensors (tensors.h).
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <type_traits>

#include "schedule.h"

namespace nb = nanobind;

namespace normwright {

void bind_tensors(nb::module_& m);
void bind_shared(nb::module_& m);

// What forward saves lies in a bytearray: Python makes one twenty times faster than a tensor.
inline Saved saved_rows(nb::bytearray rows, int64_t channels) {
  if (int64_t(rows.size()) != 4 * channels * int64_t(sizeof(double))) throw nb::value_error("saved: 4 * C doubles");
  double* p = reinterpret_cast<double*>(rows.data());
  return {p, p + channels, p + 2 * channels, p + 3 * channels};
}

// Calls with a null pointer of the data's type. Without the GIL, but where the work is done before another thread would
// have woken.
template <class Call>
auto in_type(Dtype dtype, int64_t values, Call call) {
  std::optional<nb::gil_scoped_release> release;
  if (values > (1 << 14)) release.emplace();
  switch (dtype) {
    case Dtype::f64: return call(static_cast<double*>(nullptr));
    case Dtype::bf16: return call(static_cast<bf16*>(nullptr));
    case Dtype::f16: return call(static_cast<f16*>(nullptr));
    default: return call(static_cast<float*>(nullptr));
  }
}

}  // namespace normwright
