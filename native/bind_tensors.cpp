// The kernels for torch's tensors, seen through the table of C functions that torch publishes for DLPack. Seeing one takes
// a tenth of a microsecond; asking Python for its type, device, dtype, shape, strides and address takes half of one,
// several times a call, which is what a small layer costs.
#include "bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

using namespace nb::literals;

namespace normwright {
namespace {

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

const DlTable* table = nullptr;
PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

// False: not a tensor, or one without memory. Anything wrong is left for the caller's slower path to name.
bool see(nb::handle object, DlTensor& out) {
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
bool take_both(PerChannel& a, nb::handle one, PerChannel& b, nb::handle other, int64_t channels) {
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

int64_t bytes_of_bits(const Data& x) {
  return in_type(x.dtype, 0, [&]<class D>(D*) { return bits_bytes<D>(x.at); });
}
// False where `object` is not room for the bits of x.
bool take_bits(void*& bits, nb::handle object, const Data& x) {
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

std::optional<Seen> seen(nb::handle x, int64_t axis, nb::handle weight, nb::handle bias, nb::handle mean,
                         nb::handle var, nb::handle counter, bool by_batch, const Known& known, nb::handle residual,
                         const Activation* activation) {
  Seen s;
  if (!s.x.take(x, axis, known) || !s.follows.take_residual(residual, s.x)) return {};
  s.follows.take_activation(activation);
  const int64_t channels = s.x.at.channels;
  if (!take_both(s.gamma, weight, s.beta, bias, channels) || !take_both(s.mean, mean, s.var, var, channels)) return {};
  if (mean.is_none() != var.is_none() || (by_batch ? s.x.at.count() < 2 : mean.is_none())) return {};
  if (!counter.is_none()) {
    DlTensor t;
    if (!see(counter, t) || t.ndim != 0 || t.dtype.code != 0 || t.dtype.bits != 64) return {};
    s.counter = static_cast<int64_t*>(t.address());
  }
  return s;
}

// An output like x; the caller has just made it.
void* room(nb::handle object) {
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

}  // namespace

void bind_tensors(nb::module_& m) {
  m.def(
      "use_tensors_of",
      [](nb::handle exchange, nb::handle tensor, nb::handle parameter) {
        const auto* offered = static_cast<const DlTable*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
        if (!offered) throw nb::python_error();
        if (offered->major != 1) throw nb::value_error("DLPack 1.x is needed");
        table = offered;
        tensor_type = reinterpret_cast<PyTypeObject*>(tensor.ptr());
        parameter_type = reinterpret_cast<PyTypeObject*>(parameter.ptr());
      },
      "exchange"_a, "tensor"_a, "parameter"_a, "Learn to see tensors of these two classes through their DLPack table.");

  nb::class_<Activation>(m, "Activation", "An activation: its number in normwright.core.activation.KINDS, and its numbers.")
      .def("__init__", [](Activation* self, int kind, double a, double b) {
        if (kind < 0 || kind >= kKinds) throw nb::value_error("kind: the number of an activation");
        new (self) Activation{Kind(kind), a, b};
      }, "kind"_a, "a"_a = 0.0, "b"_a = 0.0);

  nb::class_<Seen>(m, "Seen", "The tensors of one call.")
      .def_prop_ro("channels", [](const Seen& s) { return s.x.at.channels; }, "C.")
      .def_prop_ro(
          "bits_bytes",
          [](const Seen& s) { return s.follows.residual && s.follows.activation.is_told_by_a_bit() ? bytes_of_bits(s.x) : 0; },
          "Room for the bits that backward will need; 0 where it needs none.");

  m.def("see", &seen, "x"_a, "axis"_a, "weight"_a.none(), "bias"_a.none(), "mean"_a.none(), "var"_a.none(),
        "counter"_a.none(), "by_batch"_a, "known"_a.none(), "residual"_a.none() = nb::none(), "activation"_a.none() = nb::none(),
        "The arguments of a call as the kernels see them. None where any is wrong, or of another type than the kernels know, "
        "or not on the CPU, or where x is not dense and its layout (outer, channels, inner, stride) not known.");

  m.def(
      "forward_train_seen",
      [](const Seen& s, nb::handle y, double eps, nb::bytearray saved, bool moves, double rate, bool cumulative,
         bool guarded, bool biased, nb::handle bits) {
        const Saved rows = saved_rows(saved, s.x.at.channels);
        const Running running{{moves ? s.mean.data : nullptr, s.mean.is_double},
                              {moves ? s.var.data : nullptr, s.var.is_double},
                              moves ? s.counter : nullptr, rate, cumulative, guarded, biased};
        Follows follows = s.follows;
        void* to = room(y);
        if (!take_bits(follows.bits, bits, s.x)) throw nb::value_error("bits: room for bits_bytes");
        return in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) {
          return forward_train(static_cast<const D*>(s.x.data), s.x.at, static_cast<D*>(to), s.affine(), eps, rows, running,
                               follows.in<D>());
        });
      },
      "seen"_a, "y"_a, "eps"_a, "saved"_a, "moves"_a, "rate"_a, "cumulative"_a, "guarded"_a, "biased"_a,
      "bits"_a.none() = nb::none(), "As forward_train. moves: write the running statistics and the counter.");

  m.def(
      "backward_train_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::bytearray saved, nb::handle dx,
         nb::handle dweight, nb::handle dbias, const Known& known, nb::handle bias, const Activation* activation,
         nb::handle residual, nb::handle bits, nb::handle dresidual) {
        Backward g;
        if (!g.take(x, axis, dy, weight, dx, dweight, dbias, known)) return false;
        if (!g.take_follows(bias, activation, residual, bits, dresidual)) return false;
        const Saved rows = saved_rows(saved, g.x.at.channels);
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_train(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(), rows,
                         g.in<D>(), g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "saved"_a, "dx"_a.none(), "dweight"_a.none(), "dbias"_a.none(),
      "known"_a.none(), "bias"_a.none() = nb::none(), "activation"_a.none() = nb::none(), "residual"_a.none() = nb::none(),
      "bits"_a.none() = nb::none(), "dresidual"_a.none() = nb::none(),
      "As backward_train, gradients where there is room for them; dy, dx, residual and dresidual dense, in x's order of "
      "axes. False, and nothing is written, where any is not as forward had it.");

  m.def(
      "forward_fixed_seen",
      [](const Seen& s, nb::handle y, double eps, nb::handle bits) {
        Follows follows = s.follows;
        void* to = room(y);
        if (!take_bits(follows.bits, bits, s.x)) throw nb::value_error("bits: room for bits_bytes");
        in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) {
          forward_fixed(static_cast<const D*>(s.x.data), s.x.at, static_cast<D*>(to), s.affine(),
                        Fixed{s.mean.or_else(0), s.var.or_else(1), eps}, follows.in<D>());
        });
      },
      "seen"_a, "y"_a, "eps"_a, "bits"_a.none() = nb::none(), "As forward_fixed.");

  m.def(
      "backward_fixed_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::handle mean, nb::handle var, double eps,
         nb::handle dx, nb::handle dweight, nb::handle dbias, const Known& known, nb::handle bias,
         const Activation* activation, nb::handle residual, nb::handle bits, nb::handle dresidual) {
        Backward g;
        PerChannel means, vars;
        if (!g.take(x, axis, dy, weight, dx, dweight, dbias, known)) return false;
        if (!g.take_follows(bias, activation, residual, bits, dresidual)) return false;
        if (!take_both(means, mean, vars, var, g.x.at.channels)) return false;
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_fixed(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(),
                         Fixed{means.or_else(0), vars.or_else(1), eps}, g.in<D>(), g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "mean"_a, "var"_a, "eps"_a, "dx"_a.none(), "dweight"_a.none(),
      "dbias"_a.none(), "known"_a.none(), "bias"_a.none() = nb::none(), "activation"_a.none() = nb::none(),
      "residual"_a.none() = nb::none(), "bits"_a.none() = nb::none(), "dresidual"_a.none() = nb::none(),
      "As backward_fixed, otherwise as backward_train_seen.");
}

}  // namespace normwright
