// Adapters from torch's stable ABI to the CPU kernels: check, lay out, allocate, launch. Nothing else.
//
// The schemas are defined in pyconv/ops.py. Python has validated the arguments and chosen the kernel; the
// checks here only make sure that a direct call of torch.ops.pyconv.* cannot touch memory that is not its own.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "common/library.h"

namespace {
using pyconv::Conv2dProblem;
using pyconv::CpuKernel;
using pyconv::Pool2dProblem;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

int32_t dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return pyconv::kFloat32;
    case ScalarType::Double: return pyconv::kFloat64;
    case ScalarType::Half: return pyconv::kFloat16;
    case ScalarType::BFloat16: return pyconv::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "pyconv: the CPU kernels take floating-point tensors of 16, 32 and 64 bits only");
  }
}

// torch's own number for the tensor's dtype, as its C functions take it.
int32_t aoti_dtype(const Tensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// Strides, in elements, of a dense [a][b][c][d] tensor in the layout (nhwc: stored as [a][c][d][b]).
void dense_strides(const int64_t* sizes, int32_t layout, int64_t* strides) {
  const int64_t order_nchw[4] = {0, 1, 2, 3}, order_nhwc[4] = {0, 2, 3, 1};
  const int64_t* order = layout == pyconv::kNhwc ? order_nhwc : order_nchw;
  int64_t step = 1;
  for (int axis = 3; axis >= 0; --axis) {
    strides[order[axis]] = step;
    step *= sizes[order[axis]] > 0 ? sizes[order[axis]] : 1;
  }
}

// What memory is for, as an error names it: "the result" of "conv2d.fprop.direct".
struct Purpose {
  const char* what;
  const char* kernel;
  const char* advice = "";
};

// A tensor of torch's allocator.
Tensor allocate(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                const Purpose& purpose) {
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle) ==
      AOTI_TORCH_SUCCESS)
    return Tensor(handle);
  const bool is_16_bit = dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16();
  long double bytes = dtype == aoti_torch_dtype_uint8()     ? 1
                      : is_16_bit                           ? 2
                      : dtype == aoti_torch_dtype_float64() ? 8
                                                            : 4;
  std::string shape;
  for (int64_t axis = 0; axis < dims; ++axis) {
    bytes *= sizes[axis];
    shape += (axis ? ", " : "") + std::to_string(sizes[axis]);
  }
  std::string number = std::to_string(bytes);
  number.resize(number.find('.'));
  throw std::runtime_error("pyconv: can't allocate memory: tried to allocate " + number + " bytes for " +
                           purpose.what + purpose.kernel + " [" + shape + "]" + purpose.advice);
}

Tensor make(const int64_t* sizes, int32_t layout, int32_t dtype, const Purpose& purpose) {
  int64_t strides[4];
  dense_strides(sizes, layout, strides);
  return allocate(4, sizes, strides, dtype, purpose);
}

Tensor make_vector(int64_t size, int32_t dtype, const Purpose& purpose) {
  const int64_t step = 1;
  return allocate(1, &size, &step, dtype, purpose);
}

// The tensor itself if it is dense in the layout already, else a dense copy.
Tensor dense(const Tensor& tensor, int32_t layout) {
  STD_TORCH_CHECK(tensor.dim() == 4, "pyconv: expected a 4-D tensor, got ", tensor.dim(), "-D");
  STD_TORCH_CHECK(tensor.is_cpu(), "pyconv: expected a CPU tensor");
  int64_t strides[4];
  dense_strides(tensor.sizes().data(), layout, strides);
  bool is_dense = true;
  for (int axis = 0; axis < 4; ++axis) is_dense &= tensor.size(axis) == 1 || tensor.stride(axis) == strides[axis];
  if (is_dense || tensor.numel() == 0) return tensor;
  // Not torch's contiguous(): where sizes of 1 make both formats true it would return the tensor as it is.
  Tensor copy = make(tensor.sizes().data(), layout, aoti_dtype(tensor), {"a dense copy of an operand", ""});
  return torch::stable::copy_(copy, tensor);
}

// Scratch from torch's allocator, aligned to a cache line, freed on return.
class Workspace {
 public:
  Workspace(int64_t bytes, const char* kernel) {
    if (bytes <= 0) return;
    // torch aligns its blocks to a cache line. Without room to spare, what passes either end of the workspace leaves
    // the block too, which is how tests/test_bounds.py finds it.
    constexpr int64_t kLine = 64;
    const Purpose purpose{"the workspace of ", kernel,
                          "; pyconv.set_workspace_limit makes selection take kernels that need less"};
    tensor_ = make_vector((bytes + kLine - 1) / kLine * kLine, aoti_torch_dtype_uint8(), purpose);
    if (address() % kLine) tensor_ = make_vector(bytes + kLine, aoti_torch_dtype_uint8(), purpose);
    data_ = reinterpret_cast<void*>((address() + kLine - 1) / kLine * kLine);
  }
  void* data() const { return data_; }

 private:
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(tensor_->mutable_data_ptr()); }

  std::optional<Tensor> tensor_;
  void* data_ = nullptr;
};

// The kernel of that name, which must be of `pass`: another pass would take its operands for something else.
const CpuKernel& kernel_named(const std::string& name, const char* operation, const std::string& pass) {
  const CpuKernel* kernel = pyconv::find_kernel(name.data(), name.size());
  STD_TORCH_CHECK(kernel, "pyconv: kernel '", name, "' is not in the CPU library (instruction set ",
                  pyconv::active_isa(), ")");
  const std::string prefix = std::string(operation) + "." + pass + ".";
  STD_TORCH_CHECK(name.compare(0, prefix.size(), prefix) == 0, "pyconv: kernel '", name, "' is not one of ",
                  prefix, "*");
  return *kernel;
}

template <class Problem, class Function>
Workspace workspace_for(const CpuKernel& kernel, Function function, const Problem& problem) {
  const int64_t bytes = function ? function(problem, pyconv::num_threads()) : 0;
  STD_TORCH_CHECK(bytes >= 0, "pyconv: kernel '", kernel.name, "' cannot do this problem");
  return Workspace(bytes, kernel.name.c_str());
}

void check_sizes(const Tensor& tensor, const int64_t* sizes, const char* what) {
  bool equal = tensor.dim() == 4;
  for (int axis = 0; equal && axis < 4; ++axis) equal = tensor.size(axis) == sizes[axis];
  STD_TORCH_CHECK(equal, "pyconv: ", what, " does not have the shape [", sizes[0], ", ", sizes[1], ", ", sizes[2],
                  ", ", sizes[3], "] of this problem");
}

void check_lists(const Ints& stride, const Ints& padding, const Ints& dilation) {
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] > 0 && stride[1] > 0,
                  "pyconv: stride must be 2 positive integers");
  STD_TORCH_CHECK(padding.size() == 4 && padding[0] >= 0 && padding[1] >= 0 && padding[2] >= 0 && padding[3] >= 0,
                  "pyconv: padding must be 4 integers >= 0 (top, bottom, left, right)");
  STD_TORCH_CHECK(dilation.size() == 2 && dilation[0] > 0 && dilation[1] > 0,
                  "pyconv: dilation must be 2 positive integers");
}

// Sizes that the kernels' 64-bit arithmetic can hold: as pyconv/problem.py refuses them.
void check_extent(int64_t extent, int64_t before, int64_t after, int64_t size, int64_t dilation, int64_t stride) {
  const __int128 padded = static_cast<__int128>(extent) + before + after;
  const __int128 covered = static_cast<__int128>(dilation) * (size - 1);
  STD_TORCH_CHECK(padded < pyconv::kExtentLimit && covered < pyconv::kExtentLimit && stride < pyconv::kExtentLimit,
                  "pyconv: a padded image, a dilated filter or a stride reaches 2^47 along one axis");
}

void check_bytes(const int64_t* sizes, const char* what) {
  __int128 bytes = sizeof(double);
  for (int axis = 0; axis < 4; ++axis) {
    bytes *= sizes[axis];
    STD_TORCH_CHECK(bytes <= INT64_MAX, "pyconv: ", what, " would have more than 2^63 - 1 bytes");
  }
}

// ---- conv2d ----------------------------------------------------------------------------------------

// Runs a kernel of one pass: fprop (x, w, bias) -> y, dgrad (dy, w) -> dx, wgrad (x, dy) -> dw, bgrad (dy) -> db.
Tensor run_conv2d(const std::string& name, const std::string& pass, const Conv2dProblem& problem, const Tensor& a,
                  const std::optional<Tensor>& b, const std::optional<Tensor>& bias) {
  const CpuKernel& kernel = kernel_named(name, "conv2d", pass);
  const int64_t x[4] = {problem.n, problem.c, problem.h, problem.w};
  const int64_t w[4] = {problem.k, problem.group_c(), problem.r, problem.s};
  const int64_t y[4] = {problem.n, problem.k, problem.p(), problem.q()};
  const bool is_fprop = pass == "fprop", is_wgrad = pass == "wgrad", is_bgrad = pass == "bgrad";
  const bool a_is_x = is_fprop || is_wgrad;

  STD_TORCH_CHECK(dtype_of(a) == problem.dtype, "pyconv: the operand does not have the dtype of this problem");
  check_sizes(a, a_is_x ? x : y, a_is_x ? "x" : "dy");
  STD_TORCH_CHECK(b.has_value() != is_bgrad, "pyconv: ", name, " takes ",
                  is_bgrad ? "one operand" : "two operands");
  if (b) {
    STD_TORCH_CHECK(dtype_of(*b) == problem.dtype, "pyconv: the two operands differ in dtype");
    check_sizes(*b, is_wgrad ? y : w, is_wgrad ? "dy" : "w");
  }
  const bool bias_fits = !bias || (is_fprop && bias->dim() == 1 && bias->size(0) == problem.k && bias->is_cpu() &&
                                   dtype_of(*bias) == problem.dtype);
  STD_TORCH_CHECK(bias_fits, "pyconv: bias must be a CPU tensor of shape [", problem.k, "] with the dtype of x");

  const Purpose result{"the result of ", name.c_str()};
  const int64_t* sizes = is_fprop ? y : is_wgrad ? w : x;
  const Tensor out = is_bgrad ? make_vector(problem.k, aoti_dtype(a), result)
                              : make(sizes, problem.layout, aoti_dtype(a), result);
  if (out.numel() == 0) return out;
  const Tensor a_dense = dense(a, problem.layout);
  std::optional<Tensor> b_dense, bias_dense;
  if (b) b_dense = dense(*b, problem.layout);
  if (bias) bias_dense = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  const Workspace workspace = workspace_for(kernel, kernel.conv2d_workspace, problem);
  kernel.conv2d_run(problem,
                    {a_dense.const_data_ptr(), b ? b_dense->const_data_ptr() : nullptr,
                     bias ? bias_dense->const_data_ptr() : nullptr, out.mutable_data_ptr(), workspace.data()});
  return out;
}

Conv2dProblem conv2d_problem(const int64_t* x, const int64_t* w, const Ints& stride, const Ints& padding,
                             const Ints& dilation, int64_t groups, bool channels_last, const Tensor& like) {
  check_lists(stride, padding, dilation);
  STD_TORCH_CHECK(groups > 0 && x[1] % groups == 0 && w[0] % groups == 0 && w[1] == x[1] / groups,
                  "pyconv: groups=", groups, " does not fit ", x[1], " input channels and a filter of shape [",
                  w[0], ", ", w[1], ", ", w[2], ", ", w[3], "]");
  Conv2dProblem problem{};
  problem.n = x[0], problem.c = x[1], problem.h = x[2], problem.w = x[3];
  problem.k = w[0], problem.r = w[2], problem.s = w[3];
  problem.stride_h = stride[0], problem.stride_w = stride[1];
  problem.pad_top = padding[0], problem.pad_bottom = padding[1];
  problem.pad_left = padding[2], problem.pad_right = padding[3];
  problem.dilation_h = dilation[0], problem.dilation_w = dilation[1];
  problem.groups = groups;
  problem.dtype = dtype_of(like), problem.layout = channels_last ? pyconv::kNhwc : pyconv::kNchw;
  check_extent(problem.h, problem.pad_top, problem.pad_bottom, problem.r, problem.dilation_h, problem.stride_h);
  check_extent(problem.w, problem.pad_left, problem.pad_right, problem.s, problem.dilation_w, problem.stride_w);
  const int64_t y[4] = {problem.n, problem.k, problem.p(), problem.q()};
  check_bytes(x, "x"), check_bytes(w, "w"), check_bytes(y, "y");
  return problem;
}

Tensor conv2d_fprop(const Tensor& x, const Tensor& w, std::optional<Tensor> bias, Ints stride, Ints padding,
                    Ints dilation, int64_t groups, bool channels_last, std::string kernel) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4, "pyconv: x and w must be 4-D");
  const auto problem =
      conv2d_problem(x.sizes().data(), w.sizes().data(), stride, padding, dilation, groups, channels_last, x);
  return run_conv2d(kernel, "fprop", problem, x, w, bias);
}

Tensor conv2d_dgrad(const Tensor& dy, const Tensor& w, Ints input_size, Ints stride, Ints padding, Ints dilation,
                    int64_t groups, bool channels_last, std::string kernel) {
  STD_TORCH_CHECK(dy.dim() == 4 && w.dim() == 4 && input_size.size() == 2,
                  "pyconv: dy and w must be 4-D, input_size 2 integers");
  const int64_t x[4] = {dy.size(0), w.size(1) * groups, input_size[0], input_size[1]};
  const auto problem = conv2d_problem(x, w.sizes().data(), stride, padding, dilation, groups, channels_last, dy);
  return run_conv2d(kernel, "dgrad", problem, dy, w, std::nullopt);
}

Tensor conv2d_wgrad(const Tensor& x, const Tensor& dy, Ints filter_size, Ints stride, Ints padding, Ints dilation,
                    int64_t groups, bool channels_last, std::string kernel) {
  STD_TORCH_CHECK(x.dim() == 4 && dy.dim() == 4 && filter_size.size() == 2 && groups > 0,
                  "pyconv: x and dy must be 4-D, filter_size 2 integers, groups positive");
  const int64_t w[4] = {dy.size(1), x.size(1) / groups, filter_size[0], filter_size[1]};
  const auto problem = conv2d_problem(x.sizes().data(), w, stride, padding, dilation, groups, channels_last, x);
  return run_conv2d(kernel, "wgrad", problem, x, dy, std::nullopt);
}

Tensor conv2d_bgrad(const Tensor& dy, bool channels_last, std::string kernel) {
  STD_TORCH_CHECK(dy.dim() == 4, "pyconv: dy must be 4-D");
  // The bias gradient is a sum over n, p, q: the problem of a 1x1 filter on one channel has the same y.
  const int64_t x[4] = {dy.size(0), 1, dy.size(2), dy.size(3)}, w[4] = {dy.size(1), 1, 1, 1};
  const auto problem = conv2d_problem(x, w, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1, channels_last, dy);
  return run_conv2d(kernel, "bgrad", problem, dy, std::nullopt, std::nullopt);
}

// ---- max_pool2d --------------------------------------------------------------------------------------

// Runs a kernel of one pass: fprop (x) -> y, fprop_argmax (x) -> y and argmax_out, dgrad (dy, argmax) -> dx,
// gather (x, argmax) -> y. dx[n,c,argmax[n,c,p,q]] += dy[n,c,p,q]; y[n,c,p,q] = x[n,c,argmax[n,c,p,q]].
Tensor run_pool2d(const std::string& name, const std::string& pass, const Pool2dProblem& problem, const Tensor& a,
                  const std::optional<Tensor>& argmax, std::optional<Tensor>* argmax_out = nullptr) {
  const CpuKernel& kernel = kernel_named(name, "maxpool2d", pass);
  const int64_t x[4] = {problem.n, problem.c, problem.h, problem.w};
  const int64_t y[4] = {problem.n, problem.c, problem.p(), problem.q()};
  const bool is_dgrad = pass == "dgrad";

  STD_TORCH_CHECK(problem.h * problem.w <= INT32_MAX, "pyconv: a plane of ", problem.h, "x", problem.w,
                  " is too large for 32-bit places");
  STD_TORCH_CHECK(dtype_of(a) == problem.dtype, "pyconv: the operand does not have the dtype of this problem");
  check_sizes(a, is_dgrad ? y : x, is_dgrad ? "dy" : "x");
  STD_TORCH_CHECK(argmax.has_value() == (is_dgrad || pass == "gather"), "pyconv: ", name,
                  argmax ? " takes no argmax" : " takes an argmax");
  STD_TORCH_CHECK((argmax_out != nullptr) == (pass == "fprop_argmax"), "pyconv: ", name,
                  argmax_out ? " returns no argmax" : " also returns an argmax");
  if (argmax) {
    STD_TORCH_CHECK(argmax->scalar_type() == ScalarType::Int, "pyconv: argmax must be int32");
    check_sizes(*argmax, y, "argmax");
  }

  const Tensor out = make(is_dgrad ? x : y, problem.layout, aoti_dtype(a), {"the result of ", name.c_str()});
  if (argmax_out)
    *argmax_out = make(y, problem.layout, aoti_torch_dtype_int32(), {"the argmax of ", name.c_str()});
  if (out.numel() == 0) return out;
  const Tensor a_dense = dense(a, problem.layout);
  std::optional<Tensor> argmax_dense;
  if (argmax) argmax_dense = dense(*argmax, problem.layout);
  const Workspace workspace = workspace_for(kernel, kernel.pool2d_workspace, problem);
  kernel.pool2d_run(
      problem,
      {a_dense.const_data_ptr(), argmax ? static_cast<const int32_t*>(argmax_dense->const_data_ptr()) : nullptr,
       out.mutable_data_ptr(), argmax_out ? static_cast<int32_t*>((*argmax_out)->mutable_data_ptr()) : nullptr,
       workspace.data()});
  return out;
}

Pool2dProblem pool2d_problem(const Tensor& like, const int64_t* x, const Ints& window, const Ints& stride,
                             const Ints& padding, const Ints& dilation, bool ceil_mode, bool channels_last) {
  check_lists(stride, padding, dilation);
  STD_TORCH_CHECK(window.size() == 2 && window[0] > 0 && window[1] > 0,
                  "pyconv: window must be 2 positive integers");
  Pool2dProblem problem{};
  problem.n = x[0], problem.c = x[1], problem.h = x[2], problem.w = x[3];
  problem.r = window[0], problem.s = window[1];
  problem.stride_h = stride[0], problem.stride_w = stride[1];
  problem.pad_top = padding[0], problem.pad_bottom = padding[1];
  problem.pad_left = padding[2], problem.pad_right = padding[3];
  problem.dilation_h = dilation[0], problem.dilation_w = dilation[1];
  problem.ceil_mode = ceil_mode;
  problem.dtype = dtype_of(like), problem.layout = channels_last ? pyconv::kNhwc : pyconv::kNchw;
  check_extent(problem.h, problem.pad_top, problem.pad_bottom, problem.r, problem.dilation_h, problem.stride_h);
  check_extent(problem.w, problem.pad_left, problem.pad_right, problem.s, problem.dilation_w, problem.stride_w);
  const int64_t y[4] = {problem.n, problem.c, problem.p(), problem.q()};
  check_bytes(x, "x"), check_bytes(y, "y");
  return problem;
}

const int64_t* sizes_of_x(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "pyconv: x must be 4-D");
  return x.sizes().data();
}

Tensor max_pool2d(const Tensor& x, Ints window, Ints stride, Ints padding, Ints dilation, bool ceil_mode,
                  bool channels_last, std::string kernel) {
  const auto problem =
      pool2d_problem(x, sizes_of_x(x), window, stride, padding, dilation, ceil_mode, channels_last);
  return run_pool2d(kernel, "fprop", problem, x, std::nullopt);
}

std::tuple<Tensor, Tensor> max_pool2d_argmax(const Tensor& x, Ints window, Ints stride, Ints padding,
                                             Ints dilation, bool ceil_mode, bool channels_last,
                                             std::string kernel) {
  const auto problem =
      pool2d_problem(x, sizes_of_x(x), window, stride, padding, dilation, ceil_mode, channels_last);
  std::optional<Tensor> argmax;
  const Tensor y = run_pool2d(kernel, "fprop_argmax", problem, x, std::nullopt, &argmax);
  return {y, *argmax};
}

Tensor max_pool2d_dgrad(const Tensor& dy, const Tensor& argmax, Ints input_size, Ints window, Ints stride,
                        Ints padding, Ints dilation, bool ceil_mode, bool channels_last, std::string kernel) {
  STD_TORCH_CHECK(dy.dim() == 4 && input_size.size() == 2, "pyconv: dy must be 4-D, input_size 2 integers");
  const int64_t x[4] = {dy.size(0), dy.size(1), input_size[0], input_size[1]};
  const auto problem = pool2d_problem(dy, x, window, stride, padding, dilation, ceil_mode, channels_last);
  return run_pool2d(kernel, "dgrad", problem, dy, argmax);
}

Tensor max_pool2d_gather(const Tensor& x, const Tensor& argmax, Ints window, Ints stride, Ints padding,
                         Ints dilation, bool ceil_mode, bool channels_last, std::string kernel) {
  const auto problem =
      pool2d_problem(x, sizes_of_x(x), window, stride, padding, dilation, ceil_mode, channels_last);
  return run_pool2d(kernel, "gather", problem, x, argmax);
}

// ---- Bound launches ------------------------------------------------------------------------------------
//
// A call from Python spends more on handing over lists of integers than a small convolution takes. So Python binds
// a kernel to a problem once, passes the number it got for them from then on, and gives the number back in the end.

struct Bound {
  std::string kernel;
  std::string pass;  // the second word of the kernel's name
  Conv2dProblem conv2d;
  Pool2dProblem pool2d;
};

struct Slot {
  std::shared_ptr<const Bound> bound;  // shared with the calls under way; null: the number is free
  std::string key;                     // kernel and problem, as bytes
  int64_t holders;                     // how often it was bound and not yet given back
};

std::shared_mutex bound_mutex;
std::vector<Slot> slots;                           // by number
std::vector<int64_t> free_numbers;                 // those of no use now
std::unordered_map<std::string, int64_t> numbers;  // key -> number

template <class Problem>
int64_t bind(const char* kernel, const Problem& problem, Problem Bound::* member) {
  std::string key(kernel);
  key.push_back('\0');
  key.append(reinterpret_cast<const char*>(&problem), sizeof problem);
  const std::unique_lock<std::shared_mutex> lock(bound_mutex);
  if (const auto found = numbers.find(key); found != numbers.end()) {
    ++slots[found->second].holders;
    return found->second;
  }
  Bound added{kernel, "", {}, {}};
  const size_t dot = added.kernel.find('.') + 1;
  added.pass = added.kernel.substr(dot, added.kernel.find('.', dot) - dot);
  added.*member = problem;
  if (free_numbers.empty()) {
    free_numbers.push_back(static_cast<int64_t>(slots.size()));
    slots.emplace_back();
  }
  const int64_t number = free_numbers.back();
  free_numbers.pop_back();
  numbers.emplace(key, number);
  slots[number] = {std::make_shared<const Bound>(std::move(added)), std::move(key), 1};
  return number;
}

// Gives one binding back; after the last the number is free.
void unbind(int64_t number) {
  const std::unique_lock<std::shared_mutex> lock(bound_mutex);
  if (number < 0 || number >= static_cast<int64_t>(slots.size())) return;
  Slot& slot = slots[number];
  if (!slot.bound || --slot.holders > 0) return;
  numbers.erase(slot.key);
  slot = {};
  free_numbers.push_back(number);
}

std::shared_ptr<const Bound> bound_at(int64_t number) {
  const std::shared_lock<std::shared_mutex> lock(bound_mutex);
  const bool in_use = number >= 0 && number < static_cast<int64_t>(slots.size()) && slots[number].bound;
  STD_TORCH_CHECK(in_use, "pyconv: no bound launch ", number);
  return slots[number].bound;
}

Tensor conv2d_bound(const Tensor& a, std::optional<Tensor> b, std::optional<Tensor> bias, int64_t number) {
  const std::shared_ptr<const Bound> launch = bound_at(number);
  return run_conv2d(launch->kernel, launch->pass, launch->conv2d, a, b, bias);
}

Tensor max_pool2d_bound(const Tensor& a, std::optional<Tensor> argmax, int64_t number) {
  const std::shared_ptr<const Bound> launch = bound_at(number);
  return run_pool2d(launch->kernel, launch->pass, launch->pool2d, a, argmax);
}

std::tuple<Tensor, Tensor> max_pool2d_argmax_bound(const Tensor& x, int64_t number) {
  const std::shared_ptr<const Bound> launch = bound_at(number);
  std::optional<Tensor> argmax;
  const Tensor y = run_pool2d(launch->kernel, launch->pass, launch->pool2d, x, std::nullopt, &argmax);
  return {y, *argmax};
}
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyconv, CPU, library) {
  library.impl("conv2d_fprop", TORCH_BOX(&conv2d_fprop));
  library.impl("conv2d_dgrad", TORCH_BOX(&conv2d_dgrad));
  library.impl("conv2d_wgrad", TORCH_BOX(&conv2d_wgrad));
  library.impl("conv2d_bgrad", TORCH_BOX(&conv2d_bgrad));
  library.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  library.impl("max_pool2d_argmax", TORCH_BOX(&max_pool2d_argmax));
  library.impl("max_pool2d_dgrad", TORCH_BOX(&max_pool2d_dgrad));
  library.impl("max_pool2d_gather", TORCH_BOX(&max_pool2d_gather));
  library.impl("conv2d_bound", TORCH_BOX(&conv2d_bound));
  library.impl("max_pool2d_bound", TORCH_BOX(&max_pool2d_bound));
  library.impl("max_pool2d_argmax_bound", TORCH_BOX(&max_pool2d_argmax_bound));
}

// ---- What Python asks about the library itself, through ctypes (pyconv/backends/cpu.py) ---------------

#define PYCONV_API extern "C" __attribute__((visibility("default")))

namespace {
const char* joined(const std::vector<std::string>& words) {
  static thread_local std::string text;
  text.clear();
  for (const std::string& word : words) text += (text.empty() ? "" : "\n") + word;
  return text.c_str();
}
}  // namespace

PYCONV_API const char* pyconv_isa() { return pyconv::active_isa().c_str(); }
PYCONV_API const char* pyconv_isa_error() { return pyconv::isa_error().c_str(); }
PYCONV_API const char* pyconv_isas() { return joined(pyconv::runnable_isas()); }
PYCONV_API int pyconv_set_isa(const char* isa) { return pyconv::set_active_isa(isa) ? 0 : 1; }
PYCONV_API const char* pyconv_kernels() {
  std::vector<std::string> names;
  for (const CpuKernel* kernel : pyconv::active_kernels()) names.push_back(kernel->name);
  return joined(names);
}
// The number that the *_bound operators take for this kernel and problem, until as many calls of pyconv_unbind as
// have returned it. Equal calls give equal numbers.
PYCONV_API int64_t pyconv_bind_conv2d(const char* kernel, const Conv2dProblem* problem) {
  return bind(kernel, *problem, &Bound::conv2d);
}
PYCONV_API int64_t pyconv_bind_pool2d(const char* kernel, const Pool2dProblem* problem) {
  return bind(kernel, *problem, &Bound::pool2d);
}
PYCONV_API void pyconv_unbind(int64_t number) { unbind(number); }
// Numbers in use now.
PYCONV_API int64_t pyconv_bound() {
  const std::shared_lock<std::shared_mutex> lock(bound_mutex);
  return static_cast<int64_t>(numbers.size());
}
// Bytes of workspace the kernel asks for with so many threads, or -1 if there is no such kernel.
PYCONV_API int64_t pyconv_conv2d_workspace(const char* name, const Conv2dProblem* problem, int threads) {
  const CpuKernel* kernel = pyconv::find_kernel(name, std::strlen(name));
  if (!kernel || !kernel->conv2d_run) return -1;
  return kernel->conv2d_workspace ? kernel->conv2d_workspace(*problem, threads) : 0;
}
PYCONV_API int64_t pyconv_pool2d_workspace(const char* name, const Pool2dProblem* problem, int threads) {
  const CpuKernel* kernel = pyconv::find_kernel(name, std::strlen(name));
  if (!kernel || !kernel->pool2d_run) return -1;
  return kernel->pool2d_workspace ? kernel->pool2d_workspace(*problem, threads) : 0;
}
// sizes[6] = {sizeof(problem), p, q, x_size, w_size, y_size}: that C and Python agree is a test.
PYCONV_API void pyconv_conv2d_sizes(const Conv2dProblem* problem, int64_t* sizes) {
  const int64_t all[6] = {sizeof *problem,   problem->p(),      problem->q(),
                          problem->x_size(), problem->w_size(), problem->y_size()};
  std::memcpy(sizes, all, sizeof all);
}
PYCONV_API void pyconv_pool2d_sizes(const Pool2dProblem* problem, int64_t* sizes) {
  const int64_t all[6] = {sizeof *problem, problem->p(), problem->q(), problem->x_size(), 0, problem->y_size()};
  std::memcpy(sizes, all, sizeof all);
}
