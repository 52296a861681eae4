// Which instruction set runs: asked of the processor once, the widest it has. Tests may force another.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <string>

#include "kernels.h"

namespace normwright {

namespace baseline { extern const Isa isa; }
#ifdef NORMWRIGHT_HAS_avx2
namespace avx2 { extern const Isa isa; }
namespace avx512 { extern const Isa isa; }
namespace avx512_bf16 { extern const Kernels<bf16> kernels; }
#endif

namespace {

#ifdef NORMWRIGHT_HAS_avx2
// avx512, and bfloat16 by the instructions that round to it.
const Isa& with_bf16() {
  static const Isa isa = [] {
    Isa own = avx512::isa;
    own.name = "avx512_bf16";
    own.b16 = avx512_bf16::kernels;
    return own;
  }();
  return isa;
}
#endif

struct Available {
  std::array<const Isa*, 4> sets{};
  int count = 0;
  Available() {
    sets[count++] = &baseline::isa;
#ifdef NORMWRIGHT_HAS_avx2
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                          __builtin_cpu_supports("bmi2");
    if (has_avx2) sets[count++] = &avx2::isa;
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      sets[count++] = &avx512::isa;
      if (__builtin_cpu_supports("avx512bf16")) sets[count++] = &with_bf16();
    }
#endif
  }
};

const Available& available() {
  static const Available sets;
  return sets;
}

std::atomic<const Isa*>& active() {
  static std::atomic<const Isa*> isa{available().sets[available().count - 1]};
  return isa;
}

}  // namespace

const Isa& active_isa() { return *active().load(std::memory_order_relaxed); }
int isa_count() { return available().count; }
const Isa& isa_at(int k) { return *available().sets[k]; }

bool force_isa(const char* name) {
  for (int k = 0; k < isa_count(); ++k)
    if (std::strcmp(isa_at(k).name, name) == 0) {
      active() = &isa_at(k);
      return true;
    }
  return false;
}

namespace {

// The size of the largest cache up to `level`, as the kernel tells it (sysconf counts the caches of a whole server where
// this machine is a slice of one); 0 where it does not.
int64_t cache_bytes(int level) {
  int64_t largest = 0;
  for (int index = 0; index < 5; ++index) {
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    int found = 0;
    int64_t kilobytes = 0;
    if (std::ifstream file(path + "level"); !(file >> found) || found > level) continue;
    if (std::ifstream file(path + "size"); file >> kilobytes) largest = std::max(largest, kilobytes << 10);
  }
  return largest;
}

}  // namespace

int64_t last_level_cache_bytes() {
  static const int64_t bytes = cache_bytes(9);
  return bytes > 0 ? bytes : int64_t(32) << 20;  // not told: a common size
}
int64_t core_cache_bytes() {
  static const int64_t bytes = cache_bytes(2);
  return bytes > 0 ? bytes : int64_t(1) << 20;
}

}  // namespace normwright
