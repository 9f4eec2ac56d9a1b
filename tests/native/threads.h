// How the launcher runs a parallel_for, and what it saw.
#pragma once
#include <cstdint>
#include <vector>

namespace pyconv {

enum Order : int64_t { kForward = 0, kReverse = 1, kShuffled = 2 };  // and every number above: another shuffle

struct Schedule {
  int64_t threads = 1;
  int64_t order = kForward;
  std::vector<int64_t> counts;  // the number of indices of every parallel_for since it was cleared
};

extern Schedule schedule;

}  // namespace pyconv
