// The tensor-core GEMM's tiles in shared memory: how they are laid out, and how they are filled.
//
// A tile is 64 bytes of k by MN rows of A or columns of B. It keeps the major order of its matrix: filling it is
// plain copying, and a transposition, where one is needed, is left to ldmatrix.
//
//   kKMajor    MN lines (m or n) of 64 bytes of k         kMnMajor    64 bytes' worth of lines (k) of MN places
//
// A line is cut into pieces of 16 bytes, and piece i of a line lies where piece  i ^ swizzle(line)  would. Shared
// memory has 32 banks of 4 bytes, 8 groups of 16 bytes, and a read takes one pass if it touches every group once:
//
//   ldmatrix      the same piece of 8 neighbouring lines
//   plain loads   2 neighbouring pieces of 4 neighbouring lines      (where ldmatrix cannot help: load_fragment)
//
// Lines of 64 bytes: two fill the banks, so without the swizzle piece 0 of lines 0 2 4 6 would be in group 0, and
// reading it from 8 lines would take four passes. With it, piece 0 of line l is in the group that l stands under:
//
//     bank group    0  1  2  3  4  5  6  7
//     lines 0, 1    0  .  .  .  1  .  .  .
//     lines 2, 3    .  .  2  .  .  .  3  .
//     lines 4, 5    .  4  .  .  .  5  .  .
//     lines 6, 7    .  .  .  6  .  .  .  7
//
// Padding every line by 16 or 32 bytes would do as well, for up to half as much memory again.
#pragma once
#include "common/cp_async.h"
#include "common/vector.h"
#include "gemm/operands.h"

namespace pyconv {

constexpr int kTileBytesOfK = 64;  // two steps of mma.sync: 2 x 16 16-bit elements, 2 x 8 tf32, 2 x 4 doubles

template <class T, Major MAJOR, int MN>
struct TensorTile {
  static constexpr int kBk = kTileBytesOfK / int(sizeof(T));
  static constexpr int kLines = MAJOR == kKMajor ? MN : kBk;
  static constexpr int kPlaces = MAJOR == kKMajor ? kBk : MN;
  static constexpr int kElements = kLines * kPlaces;
  static constexpr int kPiece = kVector16<T>;
  static constexpr int kPieces = kPlaces / kPiece;  // of a line
  // What reads the tile. ldmatrix cannot give neighbours of a column unless they are 16-bit, nor doubles at all.
  static constexpr bool kHasLdmatrix = sizeof(T) == 2 || (sizeof(T) == 4 && MAJOR == kKMajor);

  // Depends on line % 8 alone, and moves pieces within a turn of 8 (or 4, if a line has no more): so what lies 8
  // lines or a turn further on lies a constant further on.
  static constexpr int kTurn = kPieces == 4 ? kPlaces : 8 * kPiece;
  PYCONV_DEVICE constexpr int swizzle(int line) {
    if (kPieces == 4) return (line >> 1 & 1) * 2 + (line >> 2 & 1);
    return kHasLdmatrix ? line & 7 : (line & 3) * 2;
  }

  // Where an element lies, in elements from the start of the tile.
  PYCONV_DEVICE constexpr int at(int line, int place) {
    return line * kPlaces + (place / kPiece ^ swizzle(line)) * kPiece + place % kPiece;
  }
  // Where the element (lane_line + line, lane_place + place) lies, for a lane's part below one turn and
  // constants: an address that fragments share, found once, and a constant, which costs nothing.
  PYCONV_DEVICE constexpr int at(int lane_line, int lane_place, int line, int place) {
    return at(lane_line + line % 8, lane_place + place % kTurn) + line / 8 * 8 * kPlaces + place / kTurn * kTurn;
  }
  // Where row (column) mn, a multiple of 8, begins: whole turns, in elements from the start of the tile, and the
  // place within one.
  PYCONV_DEVICE constexpr int first(int mn) { return MAJOR == kKMajor ? mn * kPlaces : mn / kTurn * kTurn; }
  PYCONV_DEVICE constexpr int rest(int mn) { return MAJOR == kKMajor ? 0 : mn % kTurn; }

  // Whether `pieces` neighbouring pieces of each of `lines` neighbouring lines lie in 8 different bank groups.
  PYCONV_DEVICE constexpr bool fills_banks(int lines, int pieces) {
    for (int line = 0; line < kLines; line += lines)
      for (int piece = 0; piece < kPieces; piece += pieces) {
        unsigned groups = 0;
        for (int i = 0; i < 8; ++i)
          groups |= 1u << at(line + i / pieces, (piece + i % pieces) * kPiece) / kPiece % 8;
        if (groups != 0xffu) return false;
      }
    return true;
  }
  static_assert(kPieces == 4 || kPieces % 8 == 0, "the swizzle stays within a line");
};

// Copies one operand's tiles into shared memory, one after the other along k, all threads of the block together.
//
// An access takes as many elements as the strides allow (has_vectors): 16 bytes as it should be, 8 or 4 where
// lines are no whole pieces. A single 16-bit element is less than cp.async can copy, and goes through a register.
// Half the width is twice the instructions, which is what channels or planes of an odd number of elements cost.
template <class T, Major MAJOR, int MN, int THREADS>
struct TileCopier {
  typedef TensorTile<T, MAJOR, MN> Tile;

  // What a thread copies next: `from` is the element of its first line and its place.
  struct Cursor {
    int width;  // elements of an access
    const T* from;
    int in_segment;     // of `from`
    int lines, places;  // that exist, from that element on; what does not is zero
  };

  // How the threads share a tile in accesses of WIDTH elements.
  template <int WIDTH>
  struct Share {
    static constexpr int kAcross = Tile::kPlaces / WIDTH;  // threads that copy a line
    static constexpr int kLinesAtOnce = THREADS / kAcross;
    static constexpr int kAccesses = Tile::kLines / kLinesAtOnce;  // of a thread
    static_assert(THREADS % kAcross == 0, "a thread keeps its place in every line that it copies");
    static_assert(Tile::kLines % kLinesAtOnce == 0, "every thread copies equally many elements");
    PYCONV_DEVICE int line(int thread) { return thread / kAcross; }
    PYCONV_DEVICE int place(int thread) { return thread % kAcross * WIDTH; }
  };

  // At rows (columns) mn and up of mn_end, and terms k and up of k_end. `matrix` is that of the block's product.
  PYCONV_DEVICE Cursor start(const MatrixLayout& layout, const T* matrix, int mn, int mn_end, int k, int k_end) {
    return start_as<Tile::kPiece>(layout, matrix, MAJOR == kKMajor ? mn : k, MAJOR == kKMajor ? mn_end : k_end,
                                  MAJOR == kKMajor ? k : mn, MAJOR == kKMajor ? k_end : mn_end);
  }

  // Copies the tile at the cursor and moves on to the next one.
  PYCONV_DEVICE void copy(const MatrixLayout& layout, Cursor& at, T* tile) {
    copy_as<Tile::kPiece>(layout, at, tile);
    if (MAJOR == kMnMajor) {
      at.from += Tile::kBk * layout.line_stride;
      at.lines -= Tile::kBk;
    } else {
      at.from += Tile::kBk;
      at.places -= Tile::kBk;
      at.in_segment += Tile::kBk;
      if (layout.segment < layout.extent)  // else the line is in one piece, and its end is the matrix's
        for (; at.in_segment >= layout.segment; at.in_segment -= layout.segment)
          at.from += layout.segment_stride - layout.segment;
    }
  }

 private:
  template <int WIDTH>
  PYCONV_DEVICE Cursor start_as(const MatrixLayout& layout, const T* matrix, int line, int line_end, int place,
                                int place_end) {
    if constexpr (WIDTH > 1)
      if (!has_vectors<WIDTH>(layout))
        return start_as<WIDTH / 2>(layout, matrix, line, line_end, place, place_end);
    line += Share<WIDTH>::line(int(threadIdx.x)), place += Share<WIDTH>::place(int(threadIdx.x));
    // Places past the end are not read, but addresses are to be aligned, which place_offset() there need not be.
    const int64_t place_at = place < place_end ? place_offset(layout, place) : 0;
    return {WIDTH, matrix + line_offset(layout, line) + place_at, place % layout.segment, line_end - line,
            place_end - place};
  }

  template <int WIDTH>
  PYCONV_DEVICE void copy_as(const MatrixLayout& layout, const Cursor& at, T* tile) {
    if constexpr (WIDTH > 1)
      if (at.width < WIDTH) return copy_as<WIDTH / 2>(layout, at, tile);
    // Of narrow accesses there are many, and registers are few: no long batches, and no addresses kept for them.
    constexpr bool kIsNarrow = WIDTH < Tile::kPiece;
    constexpr int kBatch = kIsNarrow ? 2 : Share<WIDTH>::kAccesses;
    const int thread = kIsNarrow ? recomputed(int(threadIdx.x)) : int(threadIdx.x);
    const int valid = at.places < 0 ? 0 : at.places < WIDTH ? at.places : WIDTH;
    const T* from = at.from;
    _Pragma("unroll 1") for (int first = 0; first < Share<WIDTH>::kAccesses; first += kBatch) {
      PYCONV_UNROLL
      for (int i = first; i < first + kBatch; ++i) {
        const int line = i * Share<WIDTH>::kLinesAtOnce, count = line < at.lines ? valid : 0;
        T* const to = &tile[Tile::at(Share<WIDTH>::line(thread) + line, Share<WIDTH>::place(thread))];
        if constexpr (WIDTH * sizeof(T) >= 4)
          cp_async<WIDTH* int(sizeof(T))>(to, from, count * int(sizeof(T)));  // reads nothing if count is 0
        else
          *to = count > 0 ? *from : T{};
        from += Share<WIDTH>::kLinesAtOnce * layout.line_stride;
      }
    }
  }
};

}  // namespace pyconv
