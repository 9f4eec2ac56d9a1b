// Direct convolution, channels first: x[n][c][h][w], w[k][c][r][s], y[n][k][p][q] (index_map.h for "in" and
// "out").
//
// A unit copies the input rows it needs into a panel where every tap is a plain vector load (direct_nchw_input.h).
// A register tile then holds mr output channels x a few vectors of output pixels: for every input channel and tap,
// the pixel vectors are loaded once and multiplied by mr broadcast weights. Vectors run over the ends of rows and
// images, so small images fill them too; few channels cost nothing, for channels are not lanes.
//
// Borders: the panel holds zeros for padding. 0*w adds nothing while w is finite; a panel of filters with an
// infinite or NaN weight goes through a tile that masks padding out, so that such a weight reaches only the
// outputs it belongs to.
//
// Order of every sum: input channels, tap rows, tap columns, in partial sums of some kChain products that are
// added to the bias one after the other.
//
// Elements E of 16 bits are widened where they are packed and rounded where they are stored, so the tiles know only T,
// their float. Between two blocks of input channels sums wait in y, or, where y would round them, in scratch.
#pragma once
#include "direct_nchw_store.h"
#include "direct_nchw_tile.h"
#include "direct_pack.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class E>
struct NchwPlan {
  using T = Accumulator<E>;
  using Config = NchwConfig<T>;
  Gather g;
  int64_t panels, in_block;
  Units units;
  int64_t packed_bytes, flags_bytes, taps_bytes, ones_bytes, input_bytes;
  int64_t waiting_pixels, waiting_bytes;  // sums between two blocks, of one channel and of a unit; 16 bits only

  NchwPlan(const Conv2dProblem& problem, bool dgrad) : g(make_gather(problem, dgrad)) {
    panels = ceil_div(g.out_c, Config::kMr);
    const AxisMap rows = g.rows(0), cols = g.cols(0);
    const int64_t copies = Phases(rows, false).phases * Phases(cols, split_columns<T>(cols)).phases;
    const int64_t pixel_bytes = std::max<int64_t>(1, sizeof(T) * copies);  // of one channel
    const int64_t most = std::max<int64_t>(Config::kInputBytes / (pixel_bytes * Config::kPixels), 16);
    in_block = std::max<int64_t>(1, ceil_div(g.in_c, std::max<int64_t>(1, ceil_div(g.in_c, most))));
    units = make_units(g, panels, std::max(Config::kInputBytes / (pixel_bytes * in_block), Config::kPixels),
                       Config::kLeastPanels);

    int64_t row_room = 0, col_room = 0, most_cols = 0;  // of the largest class, along each axis
    for (int64_t residue = 0; residue < g.row_classes; ++residue) {
      const Phases phases(g.rows(residue), false);
      row_room = std::max(row_room, phases.phases * (units.rows + phases.halo));
    }
    for (int64_t residue = 0; residue < g.col_classes; ++residue) {
      const AxisMap axis = g.cols(residue);
      const Phases phases(axis, split_columns<T>(axis));
      col_room = std::max(col_room, phases.phases * (axis.out_count + phases.halo));
      most_cols = std::max(most_cols, axis.out_count + phases.halo);
    }
    const int64_t size = (in_block + 1) * row_room * col_room * units.images + Config::kTileLanes;
    packed_bytes = round_up(problem.groups * g.out_c * g.in_c * g.taps * int64_t(sizeof(T)), 64);
    flags_bytes = round_up(problem.groups * panels, 64);
    taps_bytes = round_up(g.taps * int64_t(sizeof(int64_t)), 64);
    ones_bytes = round_up(g.in_w * int64_t(sizeof(T)), 64);
    input_bytes = round_up(size * int64_t(sizeof(T)), 64);
    waiting_pixels = round_up(units.rows * units.images * most_cols + Config::kTileLanes, kLanes<T>);
    const bool waits = sizeof(E) == 2 && in_block < g.in_c;
    waiting_bytes = waits ? round_up(units.panels * Config::kMr * waiting_pixels * int64_t(sizeof(T)), 64) : 0;
  }
  // Output channels are dealt out evenly, so no panel is a splinter.
  int64_t panel_begin(int64_t panel) const { return panel * g.out_c / panels; }
  int64_t thread_bytes() const { return taps_bytes + ones_bytes + input_bytes + waiting_bytes; }
  int64_t workspace(int threads) const { return packed_bytes + flags_bytes + threads * thread_bytes(); }
};

// One panel of output channels, whose first y and bias point at.
template <class E>
struct OutputPanel {
  int64_t mr;
  bool finite;              // all its weights are
  bool first, last;         // block of input channels: the later ones add to the sums of those before
  const Accumulator<E>* w;  // packed
  const E* bias;            // or null
  E* y;
  Accumulator<E>* waiting;  // 16 bits: the sums between two blocks, [mr][waiting_pixels]
  int64_t waiting_pixels;
};

// All pixels of one class of one unit, for one panel of output channels and one block of input channels.
template <class E, class T = Accumulator<E>>
void nchw_panel(const Gather& g, const InputPanel<T>& panel, const TileInput<T>& input, const T* x,
                const OutputPanel<E>& output) {
  using Config = NchwConfig<T>;
  constexpr int64_t L = kLanes<T>;
  alignas(64) T sums[Config::kMr * Config::kTileLanes + L];  // + L: a segment's last load may pass its end
  Segment segments[Config::kTileLanes];
  const int64_t y_channel = g.out_h * g.out_w, y_step = panel.cols.out_step;
  int64_t vectors = 1;
  for (int64_t f = 0; f < panel.pixels(); f += vectors * L) {
    const int64_t left = output.finite ? ceil_div(panel.pixels() - f, L) : 1;
    const auto tile = tile_function<T>(output.mr, left, &vectors);
    const int count = find_segments(g, panel, f, std::min(f + vectors * L, panel.pixels()), segments);
    if (count == 0) continue;

    for (int64_t m = 0; m < output.mr; ++m) {
      T* sum = sums + m * vectors * L;
      const Vec<T> start = broadcast(output.bias && output.first ? widen(output.bias[m]) : T(0));
      for (int64_t v = 0; v < vectors; ++v) store(sum + v * L, start);
      if (output.first) continue;
      if constexpr (sizeof(E) == 2) {
        std::memcpy(sum, output.waiting + m * output.waiting_pixels + f, size_t(vectors * L) * sizeof(T));
      } else {
        for (int i = 0; i < count; ++i)
          load_segment(output.y + m * y_channel + segments[i].out, y_step, sum + segments[i].lane,
                       segments[i].length);
      }
    }

    if (output.finite) {
      tile(input, x + f, output.w, sums);
    } else {
      for (int64_t m = 0; m < output.mr; ++m)
        nchw_tile_masked(input, x + f, input.valid + f, output.w + m, output.mr, sums + m * L);
    }

    if (sizeof(E) == 2 && !output.last) {
      for (int64_t m = 0; m < output.mr; ++m)
        std::memcpy(output.waiting + m * output.waiting_pixels + f, sums + m * vectors * L,
                    size_t(vectors * L) * sizeof(T));
      continue;
    }
    for (int64_t m = 0; m < output.mr; ++m)
      for (int i = 0; i < count; ++i)
        store_segment(output.y + m * y_channel + segments[i].out, y_step,
                      sums + m * vectors * L + segments[i].lane, segments[i].length);
  }
}

template <class E>
void direct_nchw(const Conv2dProblem& problem, const Conv2dArgs& args, bool dgrad) {
  using T = Accumulator<E>;
  const NchwPlan<E> plan(problem, dgrad);
  const Gather& g = plan.g;
  const E* w = static_cast<const E*>(args.b);
  const E* bias = static_cast<const E*>(args.bias);
  char* workspace = static_cast<char*>(args.workspace);
  T* packed = reinterpret_cast<T*>(workspace);
  char* finite = workspace + plan.packed_bytes;
  const int64_t x_channel = g.in_h * g.in_w, y_channel = g.out_h * g.out_w;

  // Pack the filters.
  for_each_unit(problem.groups * plan.panels, plan.units.serial, [&](int64_t index, int) {
    const int64_t group = index / plan.panels, panel = index % plan.panels, out = plan.panel_begin(panel);
    finite[index] = pack_nchw_panel(g, w, group, out, plan.panel_begin(panel + 1) - out,
                                    packed + (group * g.out_c + out) * g.in_c * g.taps);
  });

  for_each_unit(plan.units.count(problem.groups), plan.units.serial, [&](int64_t index, int thread) {
    const Unit unit = unit_at(g, plan.units, plan.panels, index);
    char* scratch = workspace + plan.packed_bytes + plan.flags_bytes + thread * plan.thread_bytes();
    int64_t* tap_offsets = reinterpret_cast<int64_t*>(scratch);
    T* ones = reinterpret_cast<T*>(scratch + plan.taps_bytes);
    T* x_panel = reinterpret_cast<T*>(scratch + plan.taps_bytes + plan.ones_bytes);
    T* waiting = reinterpret_cast<T*>(scratch + plan.taps_bytes + plan.ones_bytes + plan.input_bytes);
    const char* unit_finite = finite + unit.group * plan.panels + unit.panel;
    const bool all_finite = std::all_of(unit_finite, unit_finite + unit.panels, [](char flag) { return flag; });

    for_each_class(g, [&](const AxisMap& rows, const AxisMap& cols, int64_t taps_before) {
      const int64_t row_count = std::min(unit.rows, rows.out_count - unit.row);
      if (row_count <= 0) return;
      const InputPanel<T> panel(rows, cols, unit.row, row_count, unit.images);
      const int64_t taps = rows.taps * cols.taps;
      for (int64_t tap = 0; tap < taps; ++tap)
        tap_offsets[tap] = panel.tap_offset(tap / cols.taps, tap % cols.taps);

      int64_t in_first = 0;
      do {  // at least once: without input channels or taps y is bias or 0
        const int64_t in_count = taps > 0 ? std::min(plan.in_block, g.in_c - in_first) : 0;

        // Pack the input.
        const int64_t x_image = problem.groups * g.in_c * x_channel;
        const E* x =
            static_cast<const E*>(args.a) + unit.image * x_image + (unit.group * g.in_c + in_first) * x_channel;
        T* to = x_panel;
        for (int64_t c = 0; c < in_count; ++c) to = pack_channel(panel, x + c * x_channel, x_image, g.in_w, to);
        if (!all_finite && in_count > 0) {
          std::fill(ones, ones + g.in_w, T(1));
          pack_channel(panel, ones, 0, 0, to);
        }

        // Compute and store: the input panel stays in cache while the panels of filters pass.
        const TileInput<T> input{in_count, panel.channel_size, taps, tap_offsets, to};
        for (int64_t i = unit.panel; i < unit.panel + unit.panels; ++i) {
          const int64_t out = plan.panel_begin(i), mr = plan.panel_begin(i + 1) - out;
          const int64_t channel = unit.group * g.out_c + out;
          const OutputPanel<E> output{
              mr,
              finite[unit.group * plan.panels + i] != 0,
              in_first == 0,
              taps == 0 || in_first + in_count >= g.in_c,
              packed + channel * g.in_c * g.taps + (taps_before * g.in_c + taps * in_first) * mr,
              bias ? bias + channel : nullptr,
              static_cast<E*>(args.out) + (unit.image * problem.groups * g.out_c + channel) * y_channel,
              waiting + (out - plan.panel_begin(unit.panel)) * plan.waiting_pixels,
              plan.waiting_pixels};
          nchw_panel(g, panel, input, x_panel, output);
        }
        in_first += in_count;
      } while (in_first < g.in_c && taps > 0);
    });
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
