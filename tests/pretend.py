"Tensors that say they are on a device which this machine does not have: values are computed on the CPU, and devices are not to be mixed."
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_leaves

aten = torch.ops.aten
DEVICE = torch.device('meta')                                                         # needs no driver

class Elsewhere(torch.Tensor):
    "A tensor on a device that is not there, with its values in `here`"
    @staticmethod
    def __new__(cls, here, device=DEVICE):
        t = torch.Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), dtype=here.dtype, device=device, requires_grad=False)
        t.here = here
        return t
    __torch_function__ = torch._C._disabled_torch_function_impl
    def __repr__(self): return f'Elsewhere({self.here!r}, {self.device})'
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return dispatch(func, args, kwargs or {})

no_double = False                                                                     # has the device no float64, as Apple's?

def dispatch(func, args, kwargs):
    theirs = [t for t in tree_leaves((args,kwargs)) if isinstance(t, torch.Tensor)]
    where = {t.device for t in theirs if t.ndim or isinstance(t, Elsewhere)}          # a number on the CPU goes with all
    device = next((t.device for t in theirs if isinstance(t, Elsewhere)), None)
    to = kwargs.get('device')
    copies = func in (aten._to_copy.default, aten.copy_.default)
    index = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)   # torch takes indices of the CPU
    if index: where = {t.device for t in (args[0],) if t.ndim}
    if len(where) > 1 and not copies: raise RuntimeError(f'Expected all tensors to be on the same device, but found {sorted(map(str, where))}: {func}')
    target = torch.device(to) if to is not None else args[0].device if func is aten.copy_.default else device
    here = tree_map(lambda t: t.here if isinstance(t, Elsewhere) else t, (args, {**kwargs, **({'device': 'cpu'} if to is not None else {})}))
    out = func(*here[0], **here[1])
    if target is None or target.type == 'cpu': return out
    def back(t):
        if not isinstance(t, torch.Tensor): return t
        if no_double and t.dtype == torch.float64: raise TypeError("the framework doesn't support float64")
        return Elsewhere(t, target)
    for a in tree_leaves(args):
        if isinstance(a, Elsewhere) and func._schema.is_mutable and out is a.here: return a
    return tree_map(back, out)

class pretending(TorchDispatchMode):
    "Within, `t.to(DEVICE)` and factories with `device=` give tensors there, of which none are of float64 unless `double`"
    def __init__(self, double=True):
        super().__init__()
        self.double = double
    def __enter__(self):
        global no_double
        no_double,self.autocast = not self.double,torch.is_autocast_enabled
        torch.is_autocast_enabled = lambda *a: False                                  # which knows the devices that there are
        return super().__enter__()
    def __exit__(self, *exc):
        global no_double
        no_double,torch.is_autocast_enabled = False,self.autocast
        return super().__exit__(*exc)
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return dispatch(func, args, kwargs or {})

try: Elsewhere(torch.zeros(1)).as_subclass(torch.Tensor)
except RuntimeError: pytest.skip('this torch lets no tensor pretend to be elsewhere, as 2.6', allow_module_level=True)
