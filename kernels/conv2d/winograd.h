// Winograd's minimal filtering F(M x M, 3 x 3): M x M outputs of a 3x3 filter for (M+2)^2 products instead of 9 M^2.
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A        d: a tile of (M+2) x (M+2) inputs, g: the filter, y: M x M outputs
//
// These are the three matrices, for every backend: plain C++ constants, which a compiler folds.
//
// Where they come from (A. Toom 1963, S. Cook 1966; S. Winograd, Arithmetic complexity of computations, 1980). A product
// of polynomials a(x) g(x) of degree M+1 is known from its values at M+1 points p_i and its leading coefficient ("at
// infinity"). A filter is such a product transposed, so with N_i(x) = product over j != i of (x - p_j)
//
//   G    row i: 1, p_i, p_i^2, divided by N_i(p_i)      values of the filter's polynomial
//   B^T  row i: the coefficients of N_i(x); the last: those of the product over all j of (x - p_j)
//   A^T  column i: 1, p_i, ..., p_i^(M-1)               the last of all three takes the leading coefficient
//
// tests/test_winograd.py derives them anew, in exact arithmetic, and compares.
//
//   M = 2: points 0, 1, -1.                     A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
//   M = 4: points 0, +-sqrt(1/2), +-sqrt(2).    Networks (2016), take 0, +-1, +-2 for M = 4.
//
// The points decide the rounding error, because small numbers are what is left of large ones where the matrices cancel.
// Powers of 1 and 2 up to the third reach from 1 to 8; those of sqrt(1/2) and sqrt(2) from 0.35 to 2.8: half the error.
// That they are irrational costs nothing, since float rounds 1/6 and 1/24 too.
#pragma once
#include "common/problem.h"

namespace pyconv {

constexpr double kWinogradRoot2 = 1.41421356237309504880;

// Rows 2i-1 and 2i of `input` and `filter`, and these columns of `output`, belong to the points p and -p: they are equal
// in their even elements and opposite in their odd ones. The first has even elements only, the last odd ones.
template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  double input[4][4] = {// B^T
                        {1, 0, -1, 0},
                        {0, 1, 1, 0},
                        {0, -1, 1, 0},
                        {0, -1, 0, 1}};
  double filter[4][3] = {// G
                         {1, 0, 0},
                         {0.5, 0.5, 0.5},
                         {0.5, -0.5, 0.5},
                         {0, 0, 1}};
  double output[2][4] = {// A^T
                         {1, 1, 1, 0},
                         {0, 1, -1, 1}};
};

template <>
struct Winograd<4> {
  double input[6][6] = {{1, 0, -2.5, 0, 1, 0},
                        {0, -kWinogradRoot2, -2, kWinogradRoot2 / 2, 1, 0},
                        {0, kWinogradRoot2, -2, -kWinogradRoot2 / 2, 1, 0},
                        {0, -kWinogradRoot2 / 2, -0.5, kWinogradRoot2, 1, 0},
                        {0, kWinogradRoot2 / 2, -0.5, -kWinogradRoot2, 1, 0},
                        {0, 1, 0, -2.5, 0, 1}};
  double filter[6][3] = {{1, 0, 0},
                         {-2. / 3, -kWinogradRoot2 / 3, -1. / 3},
                         {-2. / 3, kWinogradRoot2 / 3, -1. / 3},
                         {1. / 6, kWinogradRoot2 / 6, 1. / 3},
                         {1. / 6, -kWinogradRoot2 / 6, 1. / 3},
                         {0, 0, 1}};
  double output[4][6] = {{1, 1, 1, 1, 1, 0},
                         {0, kWinogradRoot2 / 2, -kWinogradRoot2 / 2, kWinogradRoot2, -kWinogradRoot2, 0},
                         {0, 0.5, 0.5, 2, 2, 0},
                         {0, kWinogradRoot2 / 4, -kWinogradRoot2 / 4, 2 * kWinogradRoot2, -2 * kWinogradRoot2, 1}};
};

}  // namespace pyconv
