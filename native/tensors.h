// torch's tensors as the kernels see them, through the table of C functions that torch publishes for DLPack. Seeing one takes
// a tenth of a microsecond; asking Python for its type, device, dtype, shape, strides and address takes half of one,
// several times a call, which is what a small layer costs.
#pragma once

#include "bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

namespace normwright {

// DLPack 1.x, as its specification lays it out. Only `see` is called.
struct DlTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;

  bool on_cpu() const { return device.type == 1; }
  bool is_real() const { return dtype.code == 2 && (dtype.bits == 32 || dtype.bits == 64) && dtype.lanes == 1; }
  bool is_double() const { return dtype.bits == 64; }
  // False: of no type that the kernels know.
  bool take_dtype(Dtype& out) const {
    if (dtype.lanes != 1) return false;
    if (is_real()) out = is_double() ? Dtype::f64 : Dtype::f32;
    else if (dtype.bits == 16 && dtype.code == 2) out = Dtype::f16;
    else if (dtype.bits == 16 && dtype.code == 4) out = Dtype::bf16;
    else return false;
    return true;
  }
  void* address() const { return static_cast<char*>(data) + byte_offset; }
  int64_t count() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }
  bool is_dense() const {
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != step) return false;
      step *= shape[d];
    }
    return true;
  }
};
struct DlTable {
  uint32_t major, minor;
  void *older, *allocate, *managed, *back;
  int (*see)(void* object, DlTensor* out);
  void* stream;
};

inline const DlTable* table = nullptr;
inline PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

// False: not a tensor, or one without memory. Anything wrong is left for the caller's slower path to name.
inline bool see(nb::handle object, DlTensor& out) {
  if (!table || (Py_TYPE(object.ptr()) != tensor_type && Py_TYPE(object.ptr()) != parameter_type)) return false;
  if (table->see(object.ptr(), &out) != 0) {
    PyErr_Clear();
    return false;
  }
  return out.on_cpu() && out.data;
}

// Per-channel numbers, or none.
struct PerChannel {
  void* data = nullptr;
  bool is_double = false;
  bool take(nb::handle object, int64_t channels) {
    if (object.is_none()) return true;
    DlTensor t;
    if (!see(object, t) || !t.is_real() || t.ndim != 1 || t.shape[0] != channels || !t.is_dense()) return false;
    data = t.address();
    is_double = t.is_double();
    return true;
  }
  Reals or_else(double otherwise) const { return {data, is_double, otherwise}; }
};
inline bool take_both(PerChannel& a, nb::handle one, PerChannel& b, nb::handle other, int64_t channels) {
  return a.take(one, channels) && b.take(other, channels) && (!a.data || !b.data || a.is_double == b.is_double);
}

// outer, channels, inner, stride
using Known = std::optional<std::tuple<int64_t, int64_t, int64_t, int64_t>>;

struct Data {
  void* data = nullptr;
  Dtype dtype{};
  Layout at{};
  // At least one value; dense with channels on `axis`, or, where the caller knows how it lies, as `known` says.
  bool take(nb::handle object, int64_t axis, const Known& known) {
    DlTensor t;
    if (!see(object, t) || !t.take_dtype(dtype) || t.ndim < 2 || axis >= t.ndim) return false;
    if (known) {
      const auto [outer, channels, inner, stride] = *known;
      at = {outer, channels, inner, stride};
      if (values() != t.count()) return false;
    } else {
      if (!t.is_dense()) return false;
      at = {1, t.shape[axis], 1, 0};
      for (int d = 0; d < t.ndim; ++d)
        if (d != axis) (d < axis ? at.outer : at.inner) *= t.shape[d];
      at.stride = at.channels * at.inner;
    }
    data = t.address();
    return values() > 0;
  }
  int64_t values() const { return at.outer * at.channels * at.inner; }
};

// What follows normalization, as far as tensors say it.
struct Follows {
  void *residual = nullptr, *bits = nullptr, *dresidual = nullptr;
  Activation activation{};
  // As many values as x, of its type; the caller has laid it as y will lie.
  bool take_residual(nb::handle object, const Data& x) {
    if (object.is_none()) return true;
    DlTensor t;
    Dtype dtype;
    if (!see(object, t) || !t.take_dtype(dtype) || dtype != x.dtype || t.count() != x.values()) return false;
    residual = t.address();
    return true;
  }
  void take_activation(const Activation* given) {
    if (given) activation = *given;
  }
  template <class D>
  After<D> in() const {
    return {static_cast<const D*>(residual), static_cast<Word<Computed<D>>*>(bits), static_cast<D*>(dresidual), activation};
  }
};

inline int64_t bytes_of_bits(const Data& x) {
  return in_type(x.dtype, 0, [&]<class D>(D*) { return bits_bytes<D>(x.at); });
}
// False where `object` is not room for the bits of x.
inline bool take_bits(void*& bits, nb::handle object, const Data& x) {
  if (object.is_none()) return true;
  DlTensor t;
  if (!see(object, t) || t.dtype.bits != 8 || !t.is_dense() || t.count() != bytes_of_bits(x)) return false;
  bits = t.address();
  return true;
}

// The arguments of one call, all found right. Addresses hold as long as the tensors do.
struct Seen {
  Data x;
  PerChannel gamma, beta, mean, var;
  int64_t* counter = nullptr;
  Follows follows;
  Affine affine() const { return {gamma.or_else(1), beta.or_else(0)}; }
};

// An output like x; the caller has just made it.
inline void* room(nb::handle object) {
  DlTensor t;
  if (object.is_none()) return nullptr;
  if (!see(object, t)) throw nb::type_error("expected a tensor with memory");
  return t.address();
}

// The arguments of a backward call.
struct Backward {
  Data x, dy;
  PerChannel gamma, beta;
  void* dx = nullptr;
  MutableReals dgamma{}, dbeta{};
  Follows follows;
  bool take(nb::handle x_, int64_t axis, nb::handle dy_, nb::handle weight, nb::handle dx_, nb::handle dweight,
            nb::handle dbias, const Known& known) {
    if (!x.take(x_, axis, known) || !dy.take(dy_, axis, known) || dy.dtype != x.dtype) return false;
    if (dy.at.outer != x.at.outer || dy.at.channels != x.at.channels || dy.at.inner != x.at.inner) return false;
    if (!gamma.take(weight, x.at.channels)) return false;
    dx = room(dx_);
    const bool is_double = weight.is_none() ? x.dtype == Dtype::f64 : gamma.is_double;
    dgamma = {room(dweight), is_double};
    dbeta = {room(dbias), is_double};
    return true;
  }
  bool take_follows(nb::handle bias, const Activation* activation, nb::handle residual, nb::handle bits, nb::handle dresidual) {
    if (!beta.take(bias, x.at.channels) || !follows.take_residual(residual, x) || !take_bits(follows.bits, bits, x)) return false;
    follows.take_activation(activation);
    follows.dresidual = room(dresidual);
    return !follows.bits || follows.activation.is_told_by_a_bit();
  }
  Affine affine() const { return {gamma.or_else(1), beta.or_else(0)}; }
  template <class D>
  Gradients<D> in() const {
    return {static_cast<D*>(dx), dgamma, dbeta};
  }
};

}  // namespace normwright
