"""The private names of torch that are used, what needs each, and the probe that comes before its first answer."""

from torch.overrides import TorchFunctionMode

from syncbn.norm.core import probes
from syncbn.norm.core.lookup import Private, PrivateAttribute, TorchDispatchMode

graph_task_id = Private(
    "torch._C._current_graph_task_id",
    "a batch norm that is trained, which must know a repeated forward pass (activation checkpointing),",
    "use layers of torch.nn",
    probes.tells_a_backward_pass,
)
will_engine_execute_node = Private(
    "torch._C._will_engine_execute_node", "overlap=True", "leave overlap out", probes.knows_what_runs
)
interpreter_stack = Private(
    "torch._C._functorch.get_interpreter_stack",
    "a batch norm under a torch.func transform",
    "leave the transform out",
    probes.lists_transforms,
)
peek_interpreter_stack = Private(
    "torch._C._functorch.peek_interpreter_stack",
    "a batch norm, which can't be computed under every torch.func transform,",
    "use layers of torch.nn",
    probes.sees_a_transform,
)
dispatch_stack_length = Private(
    "torch._C._len_torch_dispatch_stack",
    "the choice of kernels",
    "set SYNCBN_KERNELS=aten",
    probes.counts_modes,
)
top_saved_tensor_hooks = Private(
    "torch._C._autograd._top_saved_tensors_default_hooks",
    'memory="recompute"',
    'take memory="keep"',
    probes.shows_hooks,
)
make_wrapper_subclass = Private(
    "torch.Tensor._make_wrapper_subclass", "fuse_activation=True", "leave fuse_activation out", probes.makes_a_shell
)
disable_torch_function = Private(
    "torch._C.DisableTorchFunctionSubclass",
    "fuse_activation=True",
    "leave fuse_activation out",
    probes.disables_functions,
)
disable_all_torch_functions = Private(
    "torch._C.DisableTorchFunction",
    "what reads a model's graph",
    "don't give it example_input",
    probes.hides_from(TorchFunctionMode),
)
resolve_process_group = Private(
    "torch.distributed.distributed_c10d._resolve_process_group",
    "synchronization under torch.compile",
    "compile the parts between the norms",
    callable,  # compat compares the group that it returns
)
tree_map_only = Private(
    "torch.utils._pytree.tree_map_only", "a batch of nested tensors", "use torch's own functions", probes.maps_some
)
disable_current_modes = Private(
    "torch.utils._python_dispatch._disable_current_modes",
    "overlap=True",
    "leave overlap out",
    probes.hides_from(TorchDispatchMode),
)
proxy_mode = Private(
    "torch.fx.experimental.proxy_tensor.get_proxy_mode", "make_fx", "use torch.compile or torch.export", probes.is_off
)
backward_class = PrivateAttribute(
    "torch.autograd.Function._backward_cls", "overlap=True", "leave overlap out", probes.is_of_the_nodes
)
compiled_from = PrivateAttribute(
    "torch._dynamo.OptimizedModule._orig_mod",
    "a model that is compiled",
    "give the model from before torch.compile",
    callable,  # a wrapper to look at would import the compiler
)
default_store = Private(
    "torch.distributed.distributed_c10d._get_default_store",
    "callbacks.watchdog",
    "leave it out",
    callable,  # there is a store only where there are ranks
)

_LOOKS = "what changes a model's layers, which must know their hooks,", "use torch's own functions"
forward_hooks = PrivateAttribute("torch.nn.Module._forward_hooks", *_LOOKS, probes.holds("register_forward_hook"))
forward_pre_hooks = PrivateAttribute(
    "torch.nn.Module._forward_pre_hooks", *_LOOKS, probes.holds("register_forward_pre_hook")
)
backward_hooks = PrivateAttribute(
    "torch.nn.Module._backward_hooks", *_LOOKS, probes.holds("register_full_backward_hook")
)
backward_pre_hooks = PrivateAttribute(
    "torch.nn.Module._backward_pre_hooks", *_LOOKS, probes.holds("register_full_backward_pre_hook")
)
load_state_dict_pre_hooks = PrivateAttribute(
    "torch.nn.Module._load_state_dict_pre_hooks", *_LOOKS, probes.holds("register_load_state_dict_pre_hook")
)

# Not probed: making the object that has them draws random numbers.
spectral_vectors = [
    PrivateAttribute(
        f"torch.nn.utils.parametrizations._SpectralNorm.{name}", "norm=spectral", "take another norm", callable
    )
    for name in ("_u", "_v")
]

_READS = "what reads a model's graph", "don't give it example_input"
storage_identity = PrivateAttribute("torch.UntypedStorage._cdata", *_READS, probes.identifies)
storage_weak_ref = Private("torch.multiprocessing.reductions.StorageWeakRef", *_READS, probes.refers_weakly)
schema = PrivateAttribute("torch._ops.OpOverload._schema", *_READS, probes.tells_writes)
overload_name = PrivateAttribute("torch._ops.OpOverload._overloadname", *_READS, probes.names_the_overload)

version = PrivateAttribute(
    "torch.Tensor._version",
    'what must know whether a tensor was written to (frozen layers, fuse_activation, memory="recompute", overlap)',
    "leave these out",
    probes.counts_writes,
)
