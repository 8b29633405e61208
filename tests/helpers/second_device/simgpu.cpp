// The device `simgpu` (torch's PrivateUse1): its memory and arithmetic are the CPU's, its placement rules CUDA's.
// A CPU tensor beside a device tensor is an error (0-dim tensors and CPU indices apart), and each operation for which
// the host would have to wait for a GPU is reported to Python. Compiled on first import by torch.utils.cpp_extension.
#include <torch/extension.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <mutex>
#include <set>
namespace py = pybind11;
using at::Tensor; using c10::Storage; using c10::StorageImpl; using c10::DataPtr;
static const c10::Device DEV(c10::DeviceType::PrivateUse1, 0), CPU(c10::DeviceType::CPU);
static py::object* on_host = nullptr;
static void host(const std::string& what) {
  if (!on_host) return;
  py::gil_scoped_acquire gil; (*on_host)(what);
}
static void drop(void* ctx) { delete static_cast<Storage*>(ctx); }
// the storage of the other side; a pair that came from one another is found again
static Storage across(const Storage& s, c10::Device to) {
  auto& p = s.data_ptr();
  if (p.get_deleter() == &drop) { auto* other = static_cast<Storage*>(p.get_context()); if (other->device() == to && other->nbytes() == s.nbytes() && other->data() == s.data()) return *other; }
  return Storage(c10::make_intrusive<StorageImpl>(StorageImpl::use_byte_size_t(), s.nbytes(),
      DataPtr(const_cast<void*>(s.data()), new Storage(s), &drop, to), to.is_cpu() ? c10::GetCPUAllocator() : c10::GetAllocator(c10::DeviceType::PrivateUse1), true));
}
static Tensor retag(const Tensor& t, c10::Device to) {
  auto key = to.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  auto out = at::detail::make_tensor<c10::TensorImpl>(across(t.storage(), to), c10::DispatchKeySet(key), t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return out;
}
struct SimAllocator final : c10::Allocator {
  DataPtr allocate(size_t n) override { auto* cpu = new Storage(c10::make_intrusive<StorageImpl>(StorageImpl::use_byte_size_t(), n, c10::GetCPUAllocator(), true)); return DataPtr(cpu->mutable_data(), cpu, &drop, DEV); }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* d, const void* s, std::size_t n) const override { memcpy(d, s, n); }
};
static SimAllocator allocator; REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);
static const std::set<std::string> WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::masked_select", "aten::unique_consecutive", "aten::equal", "aten::unique_dim_consecutive", "aten::is_nonzero", "aten::bincount", "aten::repeat_interleave.Tensor"};
static const std::set<std::string> CPU_INDEX = {"aten::index.Tensor", "aten::index.Tensor_out", "aten::_index_put_impl_", "aten::index_put_", "aten::index_put"};
static void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto& schema = op.schema(); std::string name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  size_t n = schema.arguments().size(), base = stack->size() - n;
  if (schema.name() == "aten::_copy_from") {
    auto src = (*stack)[base].toTensor(), dst = (*stack)[base + 1].toTensor();
    bool non_blocking = (*stack)[base + 2].toBool();
    if (dst.is_cpu()) host("copy to host");
    // as torch.cuda.set_sync_debug_mode sees it: a copy to the device waits unless it is non_blocking
    else if (src.is_cpu() && src.numel() && !non_blocking) host("blocking copy to device");
    auto s = src.is_cpu() ? src : retag(src, CPU), d = dst.is_cpu() ? dst : retag(dst, CPU);
    d.copy_(s); torch::jit::drop(*stack, n); stack->emplace_back(dst); return;
  }
  bool length_is_known = name == "aten::repeat_interleave.Tensor" && !(*stack)[base + 1].isNone();
  if ((WAITS.count(name) || WAITS.count(schema.name())) && !length_is_known) host(name);
  if (name == "aten::segment_reduce" && !(*stack)[base + 6].toBool()) host(name);  // unsafe=False reads the lengths
  std::vector<std::pair<Tensor, Tensor>> back; std::vector<std::string> strangers; bool to_cpu = false;
  auto in = [&](const Tensor& t) -> Tensor {
    if (!t.defined()) return t;
    if (t.is_cpu()) { if (t.dim() > 0 ) strangers.push_back(c10::str(t.sizes())); return t; }
    for (auto& p : back) if (p.second.is_same(t)) return p.first;
    auto c = retag(t, CPU); if (t.is_conj()) c._set_conj(true); back.emplace_back(c, t); return c; };
  for (size_t i = 0; i < n; i++) {
    auto& v = (*stack)[base + i];
    if (v.isTensor()) v = in(v.toTensor());
    else if (v.isTensorList()) { c10::List<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(in(t)); v = l; }
    else if (v.isOptionalTensorList()) { c10::List<std::optional<Tensor>> l; for (const auto& t : v.toOptionalTensorVector()) { if (t.has_value() && t->defined() && t->is_cpu() && CPU_INDEX.count(name)) { host("cpu index into device tensor"); l.push_back(*t); } else l.push_back(t.has_value() ? std::optional<Tensor>(in(*t)) : std::nullopt); } v = l; }
    else if (v.isDevice()) { if (v.toDevice().is_cpu()) to_cpu = true; else v = CPU; }
    else if (schema.arguments()[i].name() == "pin_memory") v = c10::IValue();
  }
  TORCH_CHECK(strangers.empty() || schema.name() == "aten::set_", name, ": Expected all tensors to be on the same device, but found cpu", strangers, " beside simgpu");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [c, d] : back) if (c.sizes() != d.sizes() || c.strides() != d.strides() || c.storage().data() != d.storage().data()) {
    auto* impl = d.unsafeGetTensorImpl(); impl->set_storage_keep_dtype(across(c.storage(), DEV)); impl->set_sizes_and_strides(c.sizes(), c.strides(), c.storage_offset()); }
  auto out = [&](const Tensor& t) -> Tensor {
    if (!t.defined() || to_cpu || !t.is_cpu()) return t;
    for (auto& p : back) if (p.first.is_same(t)) return p.second;
    return retag(t, DEV); };
  size_t r = schema.returns().size();
  for (size_t i = stack->size() - r; i < stack->size(); i++) {
    auto& v = (*stack)[i];
    if (v.isTensor()) v = out(v.toTensor());
    else if (v.isTensorList()) { c10::List<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(out(t)); v = l; }
  }
}
static Tensor down(const Tensor& t) { return t.defined() && !t.is_cpu() ? retag(t, CPU) : t; }
static Tensor up(const Tensor& t) { return t.defined() ? retag(t, DEV) : t; }
static Tensor conv(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, at::IntArrayRef s, at::IntArrayRef p, at::IntArrayRef d, bool tr, at::IntArrayRef op, int64_t g) {
  TORCH_CHECK(!x.is_cpu() && !w.is_cpu(), "convolution: Expected all tensors to be on the same device");
  return up(at::convolution(down(x), down(w), b.has_value() ? std::optional<Tensor>(down(*b)) : b, s, p, d, tr, op, g)); }
static std::tuple<Tensor, Tensor, Tensor> conv_back(const Tensor& gr, const Tensor& x, const Tensor& w, at::IntArrayRef s, at::IntArrayRef p, at::IntArrayRef d, bool tr, at::IntArrayRef op, int64_t g, std::array<bool, 3> mask) {
  std::vector<int64_t> bias{gr.size(1)};
  auto [a, b, c] = at::convolution_backward(down(gr), down(x), down(w), at::OptionalIntArrayRef(bias), s, p, d, tr, op, g, mask);
  return {up(a), up(b), up(c)}; }
static Tensor& set4(Tensor& t, Storage s, int64_t off, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* i = t.unsafeGetTensorImpl(); i->set_storage_keep_dtype(s.device().is_cpu() ? across(s, DEV) : s);
  if (stride.empty() && !size.empty()) i->set_sizes_contiguous(size), i->set_storage_offset(off); else i->set_sizes_and_strides(size, stride, off); return t; }
static Tensor& set1(Tensor& t, Storage s) { int64_t n = s.nbytes() / t.element_size(); return set4(t, s, 0, {n}, {1}); }
static Tensor& setT(Tensor& t, const Tensor& o) { return set4(t, o.storage(), o.storage_offset(), o.sizes(), o.strides()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) { m.impl("set_.source_Storage_storage_offset", &set4); m.impl("set_.source_Storage", &set1); m.impl("set_.source_Tensor", &setT); m.impl("convolution_overrideable", &conv); m.impl("convolution_backward_overrideable", &conv_back); }
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("on_host", [](py::object f) { on_host = f.is_none() ? nullptr : new py::object(f); }); }
