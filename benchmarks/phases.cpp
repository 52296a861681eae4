// What each phase of the kernels takes, below Python: nanoseconds of a core for every 16 values, and the memory floor beside
// it. Built and run by `make phases`; arguments: a part of a shape's name, rounds (default 15). Threads: OMP_NUM_THREADS.
//
// These numbers guide work on the kernels. What users get is measured by `normwright bench`.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "pages.h"
#include "schedule.h"

using namespace normwright;

namespace {

struct Shape {
  const char* name;
  int64_t outer, channels, inner;
};
constexpr Shape kShapes[] = {
    {"32x64x112x112 NCHW", 32, 64, 12544}, {"32x64x56x56 NCHW", 32, 64, 3136},   {"32x256x14x14 NCHW", 32, 256, 196},
    {"32x512x7x7 NCHW", 32, 512, 49},      {"16x3x224x224 NCHW", 16, 3, 50176},
    {"32x64x112x112 last", 401408, 64, 1}, {"32x64x56x56 last", 100352, 64, 1},  {"8x256x56x56 last", 25088, 256, 1},
    {"32x256x14x14 last", 6272, 256, 1},   {"8x1024x14x14 last", 1568, 1024, 1}, {"8x2048x7x7 last", 392, 2048, 1},
    {"16x3x224x224 last", 802816, 3, 1},   {"64x8192", 64, 8192, 1},             {"100000x17", 100000, 17, 1},
    {"100000x129", 100000, 129, 1},        {"in cache, NCHW", 1, 16, 4096},      {"in cache, 64 last", 1024, 64, 1},
    {"in cache, 256 last", 256, 256, 1},   {"in cache, 2x2", 32, 512, 4},         {"in cache, 7x7", 32, 42, 49}};

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Medians of what each takes, run in turn.
std::vector<double> medians(const std::vector<std::function<void()>>& work, int rounds) {
  std::vector<std::vector<double>> taken(work.size());
  for (int r = 0; r < rounds; ++r)
    for (size_t k = 0; k < work.size(); ++k) {
      const double began = seconds();
      work[k]();
      taken[k].push_back(seconds() - began);
    }
  std::vector<double> middle;
  for (auto& each : taken) {
    std::sort(each.begin(), each.end());
    middle.push_back(each[each.size() / 2]);
  }
  return middle;
}

template <class D>
D as(float value) {
  if constexpr (sizeof(D) == 4) {
    return value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return D{uint16_t(bits >> 16)};
  }
}

template <class D>
void measure(const Shape& s, int rounds, Kind kind) {
  const int64_t n = s.outer * s.channels * s.inner, C = s.channels, floats = n * int64_t(sizeof(D)) / 4;
  const Layout at{s.outer, C, s.inner, C * s.inner};
  const auto room = [&] { return static_cast<D*>(std::aligned_alloc(64, size_t(n * sizeof(D) + 63) / 64 * 64)); };
  D *x = room(), *y = room(), *dy = room(), *dx = room();
  for (int64_t k = 0; k < n; ++k) {
    x[k] = as<D>(float(std::rand()) / RAND_MAX - 0.5f);
    dy[k] = as<D>(float(std::rand()) / RAND_MAX - 0.5f);
    y[k] = dx[k] = x[k];
  }
  std::vector<double> rows(4 * C), ones(C, 1), zeros(C, 0), dgamma(C), dbeta(C);
  const Saved saved{&rows[0], &rows[C], &rows[2 * C], &rows[3 * C]};
  const Affine affine{{ones.data(), true, 1}, {zeros.data(), true, 0}};
  const Fixed fixed{{zeros.data(), true, 0}, {ones.data(), true, 1}, 1e-5};
  const After<D> after{nullptr, nullptr, nullptr, {kind, kind == Kind::hardtanh ? 0 : 0.1, 6}};
  const MutableReals to_gamma{dgamma.data(), true}, to_beta{dbeta.data(), true};
  float *a = reinterpret_cast<float*>(x), *b = reinterpret_cast<float*>(dy), *c = reinterpret_cast<float*>(y);
  const auto took = medians(
      {[&] { moments_only<D>(x, at, saved); }, [&] { forward_fixed<D>(x, at, y, affine, fixed, after); },
       [&] { forward_train<D>(x, at, y, affine, 1e-5, saved, Running{}, after); },
       [&] { backward_train<D>(x, at, dy, affine, saved, {nullptr, to_gamma, to_beta}, after); },
       [&] { backward_train<D>(x, at, dy, affine, saved, {dx, to_gamma, to_beta}, after); },
       [&] { memory_floor(a, nullptr, c, nullptr, floats, false); }, [&] { memory_floor(a, nullptr, c, nullptr, floats, true); },
       [&] { memory_floor(a, b, c, nullptr, floats, false); }, [&] { memory_floor(a, b, c, nullptr, floats, true); }},
      rounds);
  const double unit = double(n) / 16 / omp_get_max_threads() * 1e-9;
  const double copy = std::min(took[5], took[6]), triad = std::min(took[7], took[8]);
  std::printf("%-20s %s %7.1f MB | moments %6.2f apply %6.2f forward %6.2f | sums %6.2f backward %6.2f | copy %6.2f triad %6.2f | "
              "both over floor %5.2f\n",
              s.name, sizeof(D) == 4 ? "float32 " : "bfloat16", double(n * sizeof(D)) / 1e6, took[0] / unit, took[1] / unit,
              took[2] / unit, took[3] / unit, took[4] / unit, copy / unit, triad / unit, (took[2] + took[4]) / (copy + triad));
  for (D* p : {x, y, dy, dx}) std::free(p);
}

// A copy into memory that is there, into fresh memory, and into fresh memory that asks for huge pages.
void measure_pages(int rounds) {
  for (const int64_t bytes : {8 << 20, 16 << 20, 24 << 20, 33 << 20, 49 << 20, 98 << 20}) {
    float* from = static_cast<float*>(std::aligned_alloc(64, bytes));
    float* warm = static_cast<float*>(std::aligned_alloc(64, bytes));
    std::fill(from, from + bytes / 4, 1.0f);
    std::fill(warm, warm + bytes / 4, 1.0f);
    const auto fresh = [&](bool asks) {
      void* to = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (asks) expect_writes(to, bytes);
      memory_floor(from, nullptr, static_cast<float*>(to), nullptr, bytes / 4, true);
      munmap(to, bytes);
    };
    const auto took = medians({[&] { memory_floor(from, nullptr, warm, nullptr, bytes / 4, true); }, [&] { fresh(false); },
                               [&] { fresh(true); }},
                              rounds);
    std::printf("copy of %3ld MB: fresh memory %5.2f times warm, with huge pages %5.2f\n", long(bytes >> 20), took[1] / took[0],
                took[2] / took[0]);
    std::free(from);
    std::free(warm);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 15;
  std::printf("%d threads, %s kernels, relu; nanoseconds of a core for 16 values\n", omp_get_max_threads(), active_isa().name);
  for (const Shape& shape : kShapes)
    if (std::string(shape.name).find(only) != std::string::npos) {
      measure<float>(shape, rounds, Kind::relu);
      measure<bf16>(shape, rounds, Kind::relu);
    }
  if (only.empty() || only == "pages") measure_pages(rounds);
  if (only.empty() || only == "kinds") {
    const char* names[] = {"identity", "relu", "leaky_relu", "hardtanh", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "elu"};
    for (int kind = 0; kind < kKinds; ++kind) {
      std::printf("%-10s ", names[kind]);
      measure<float>(kShapes[1], rounds, Kind(kind));
    }
  }
}
