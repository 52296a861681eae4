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
#endif

namespace {

struct Available {
  std::array<const Isa*, 3> sets{};
  int count = 0;
  Available() {
    sets[count++] = &baseline::isa;
#ifdef NORMWRIGHT_HAS_avx2
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (has_avx2) sets[count++] = &avx2::isa;
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      sets[count++] = &avx512::isa;
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

// As the kernel tells it (sysconf counts the caches of a whole server where this machine is a slice of one).
int64_t last_level_cache_bytes() {
  static const int64_t bytes = [] {
    int64_t largest = 0;
    for (int index = 0; index < 5; ++index) {
      const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
      if (std::ifstream file(path); file) {
        int64_t kilobytes = 0;
        if (file >> kilobytes) largest = std::max(largest, kilobytes << 10);
      }
    }
    return largest > 0 ? largest : int64_t(32) << 20;  // not told: a common size
  }();
  return bytes;
}

}  // namespace normwright
