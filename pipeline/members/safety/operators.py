"""Operators that a TorchScript file of a stranger may have: they compute with tensors and numbers, no more.

Left out on purpose: what reads or writes files (``from_file``, ``save``), sends or calls (``c10d``, ``rpc``), trusts
its numbers (``_sparse_coo_tensor_unsafe``, ``as_strided``, ``set_``, ``resize_``), sets something for the whole process
(``manual_seed``, ``set_grad_enabled``, devices), waits, or calls Python.
"""

from __future__ import annotations

_TENSORS = """
abs acos add addbmm addcdiv addcmul addmm all alpha_dropout amax amin aminmax any arange argmax argmin argsort asin
atan atan2 avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d baddbmm batch_norm bernoulli bilinear bitwise_and
bitwise_not bitwise_or bitwise_xor bmm broadcast_tensors broadcast_to cat ceil celu channel_shuffle chunk clamp
clamp_max clamp_min clip clone complex concat concatenate constant_pad_nd contiguous conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d _convolution copy cos cosh cosine_similarity count_nonzero cross
cummax cummin cumprod cumsum detach diag diagonal diff div divide dot dropout einsum elu embedding empty empty_like eq
equal erf erfc exp exp2 expand expand_as expm1 eye feature_dropout fft_fft fft_fft2 fft_fftn fft_fftshift fft_ifft
fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fill flatten flip floor
floor_divide fmod frac frobenius_norm full full_like gather ge gelu glu grid_sampler grid_sampler_2d grid_sampler_3d
group_norm gt greater greater_equal hardshrink hardsigmoid hardswish hardtanh hypot im2col imag index index_add
index_copy index_fill index_put index_select instance_norm inverse isclose isfinite isinf isnan kthvalue layer_norm le
leaky_relu lerp less less_equal lift_fresh linalg_norm linalg_vector_norm linear linspace log log10 log1p log2
log_sigmoid log_softmax logical_and logical_not logical_or logical_xor logsumexp lt masked_fill masked_scatter
masked_select matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
max_unpool3d maximum mean median meshgrid min minimum mish mm moveaxis movedim mul
multiply mv nan_to_num narrow native_batch_norm native_dropout native_group_norm native_layer_norm ne neg negative
new_empty new_full new_ones new_zeros nonzero norm normal not_equal numpy_T one_hot ones ones_like outer pad permute
pixel_shuffle pixel_unshuffle pow prelu prod quantile rand rand_like randint randn randn_like real reciprocal
reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat repeat_interleave replication_pad1d
replication_pad2d replication_pad3d reshape reshape_as rms_norm roll rot90 round rrelu rsqrt rsub
scaled_dot_product_attention scatter scatter_add select selu sigmoid sign silu sin sinh slice soft_margin_loss softmax
softplus softshrink sort split split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum swapaxes t tan
tanh tensor tensor_split threshold tile topk transpose tril triu true_divide trunc type_as unbind unflatten unfold
unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d
_upsample_bilinear2d_aa _upsample_lanczos2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_trilinear3d
var var_mean view view_as view_as_complex view_as_real where zero zeros zeros_like col2im gru lstm rnn_relu rnn_tanh
_softmax _log_softmax _native_multi_head_attention _transformer_encoder_layer_fwd _weight_norm tensordot
"""
_NUMBERS_AND_LISTS = """
Bool Complex Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __contains__ __derive_index __getitem__
__is__ __isnot__ __lshift__ __not__ __or__ __range_length __rshift__ __xor__ _set_item _to_copy _unwrap_optional append
as_tensor ceil clear copy cpu cuda degrees device dict dim element_size endswith extend factorial
floor floordiv format get get_device insert is_complex is_contiguous is_floating_point is_nonzero is_pinned item items
join keys len list lower numel ord pop radians replace reverse size split startswith storage_offset stride
str strip sym_size sym_numel to upper values warn
"""
_LANGUAGE = """
CallFunction CallMethod Constant ConstantChunk CreateObject DictConstruct EnumName EnumValue GetAttr If ListConstruct
ListUnpack Loop NumToTensor RaiseException SetAttr StringIndex TupleConstruct TupleIndex TupleSlice TupleUnpack
Uninitialized abs data device dtype id is_cpu is_cuda is_mps is_quantized is_sparse isinstance itemsize layout max min
nbytes rangelist requires_grad tolist type unchecked_cast unchecked_unwrap_optional
"""
ALLOWED = frozenset((_TENSORS + _NUMBERS_AND_LISTS).split())
"""Names in the namespace ``aten``; each also where it changes its first argument, with an underscore after it."""
ALLOWED_PRIMITIVES = frozenset(_LANGUAGE.split())
"""Names in the namespace ``prim``: the primitives of the language itself."""


def allowed(operator: str) -> bool:
    """Return whether an operator, ``namespace::name``, computes and does nothing else."""
    namespace, _, name = operator.partition("::")
    if namespace == "aten":
        return name in ALLOWED or (name.endswith("_") and not name.endswith("__") and name[:-1] in ALLOWED)
    return namespace == "prim" and name in ALLOWED_PRIMITIVES
