"`help()` says what each parameter of a public name means, and public names say of which types they are."
import ast, dataclasses, importlib, inspect, pkgutil, pydoc, re, subprocess, sys
from pathlib import Path
from types import FunctionType
import pytest
from fastai.vision.all import Learner, Recorder
from fastcore.docments import docments
import latentreg_fastai
import latentreg_fastai.all, latentreg_fastai.bench, latentreg_fastai.papers
from latentreg_fastai.help import document, explained, papers, parameters

def modules():
    for m in pkgutil.walk_packages(latentreg_fastai.__path__, 'latentreg_fastai.'):
        if '.studies' not in m.name and not m.name.endswith('_modidx'): yield importlib.import_module(m.name)

NAMES = {f'{m.__name__[17:]}.{n}': getattr(m, n) for m in modules() for n in getattr(m, '__all__', ())
         if getattr(getattr(m, n), '__module__', None) == m.__name__}
FUNCTIONS = {k: o for k,o in NAMES.items() if isinstance(o, FunctionType)}
CLASSES = {k: o for k,o in NAMES.items() if isinstance(o, type)}
document()                                               # of modules that `all`, `bench` and `papers` do not import

def arguments(f):
    "Names of the arguments in the source, with their stars; not those that `delegates` adds"
    code = inspect.unwrap(f).__code__
    n,flags = code.co_argcount + code.co_kwonlyargcount,code.co_flags
    names,stars = list(code.co_varnames[:n]),['*']*bool(flags & inspect.CO_VARARGS) + ['**']*bool(flags & inspect.CO_VARKEYWORDS)
    names += [s+v for s,v in zip(stars, code.co_varnames[n:])]
    return [n for n in names if n not in ('self','cls')]

def returns(f):
    "Does it return or yield anything but `None`?"
    def own(n):
        for c in ast.iter_child_nodes(n):
            if isinstance(c, (ast.FunctionDef,ast.Lambda,ast.ClassDef)): continue
            yield c
            yield from own(c)
    tree = ast.parse(inspect.cleandoc('\n' + inspect.getsource(inspect.unwrap(f)))).body[0]
    value = lambda n: n.value is not None and not (isinstance(n.value, ast.Constant) and n.value.value is None)
    return any(isinstance(n, (ast.Yield,ast.YieldFrom)) or isinstance(n, ast.Return) and value(n) for n in own(tree))

def said_of(o):
    "The parameters that `help` explains"
    return set(re.findall(r'^ *\|? *(\*{0,2}\w+)(?: : .*)?\n *\|? {5,}\S', pydoc.render_doc(o, renderer=pydoc.plaintext), flags=re.M))

def test_there_are_many_public_names(): assert len(FUNCTIONS) > 180 and len(CLASSES) > 70

@pytest.mark.parametrize('names', [FUNCTIONS,CLASSES], ids=['functions','classes'])
def test_every_public_name_has_a_docstring(names):
    assert not [k for k,o in names.items() if not (vars(o).get('__doc__') if isinstance(o, type) else o.__doc__)]

def test_help_explains_every_parameter_of_a_function():
    lacks = {k: gone for k,f in FUNCTIONS.items() if (gone := [a for a in arguments(f) if a not in said_of(f)])}
    assert not lacks, f'a comment is missing beside {lacks}'

def test_help_explains_every_parameter_of_a_class():
    def wanted(c):
        if dataclasses.is_dataclass(c): return [f.name for f in dataclasses.fields(c)]
        return arguments(c.__init__) if isinstance(c.__init__, FunctionType) and c.__init__.__module__.startswith('latentreg') else []
    lacks = {k: gone for k,c in CLASSES.items() if (gone := [a for a in wanted(c) if a not in said_of(c)])}
    assert not lacks, f'a comment is missing beside {lacks}'

def test_every_function_says_what_it_returns():
    assert not [k for k,f in FUNCTIONS.items() if returns(f) and 'return' not in f.__annotations__]

def test_every_parameter_has_a_type():
    all_ = {**FUNCTIONS, **{k: c.__init__ for k,c in CLASSES.items() if isinstance(c.__init__, FunctionType) and '__init__' in vars(c)
                            and not dataclasses.is_dataclass(c)}}
    lacks = {k: gone for k,f in all_.items() if (gone := [a for a in arguments(f) if not a.startswith('**') and
                                                          a.lstrip('*') not in inspect.unwrap(f).__annotations__])}
    assert not lacks

def test_papers_can_be_found_without_the_notebook():
    from latentreg_fastai.all import ITRA, CenterLoss, ManifoldMixup, PhantomEmbedding, VarianceRegularizer, VarMixup
    for c,where in ((ManifoldMixup,'1806.05236'), (ITRA,'2211.13332'), (PhantomEmbedding,'2304.07262'), (VarMixup,'2003.06566'),
                    (CenterLoss,'ECCV 2016')):
        assert where in c.__doc__.partition('References')[2], c
    assert len(papers) == 7

def test_callbacks_say_when_they_refuse():
    from latentreg_fastai.all import ITRA, ManifoldMixup, MMDVAE
    assert all('\nRaises\n------\nValueError, TypeError\n' in c.__doc__ for c in (ITRA, ManifoldMixup)) and 'Raises' not in MMDVAE.__doc__

def test_methods_of_fastai_classes_are_explained():
    assert all('\nParameters\n' in f.__doc__ for f in (Learner.weight_find, Learner.save_training, Learner.load_training, Recorder.plot_latent))

def test_methods_for_users_are_explained():
    from latentreg_fastai.all import LatentComparison, LatentInterpretation
    for c in (LatentInterpretation, LatentComparison):
        fs = {k: getattr(f, '__func__', f) for k,f in vars(c).items() if isinstance(getattr(f, '__func__', f), FunctionType) and k[0] != '_'}
        assert len(fs) > 10 and not [k for k,f in fs.items() if [a for a in arguments(f) if a not in said_of(f)] or 'return' not in f.__annotations__]

def test_once_is_enough():
    doc = Learner.weight_find.__doc__
    document(Learner)
    assert Learner.weight_find.__doc__ == doc and doc.count('Parameters\n') == 1

def test_what_is_read_is_what_fastcore_reads():
    "`docments` parses the same comments in another way; it has no stars, and has what `delegates` adds in place of `**kwargs`"
    for k,f in FUNCTIONS.items():
        theirs = {n: ' '.join(c.split()) for n,c in docments(inspect.unwrap(f), returns=False).items() if c and n in {a.lstrip('*') for a in arguments(f)}}
        ours = {n: ' '.join(c.split()) for n,c in re.findall(r'^\*{0,2}(\w+)(?: : .*)?\n    (.*)$', f.__doc__.partition('\nParameters\n')[2].partition('\nReturns\n')[0], flags=re.M)}
        assert theirs.items() <= ours.items() and {*ours} - {*theirs} <= {'kwargs'}, k

@pytest.mark.parametrize('source,found,result', [
    (['def f(', '    a:int=1, # One', "    b=',', # A comma, (N, I)", '    *c:Tensor, # More', '    **kwargs, # Of `g`', ')->dict[str,int]: # By name'],
     ['a : int, default 1\n    One', "b : default ','\n    A comma, (N, I)", '*c : Tensor\n    More', '**kwargs\n    Of `g`'], 'dict[str,int]\n    By name'),
    (['@wrap', 'def f(', '    a:Callable[[int],str]=lambda i: str(i), # Of a number', '):', '    x = 1 # no parameter'],
     ['a : Callable[[int],str], default lambda i: str(i)\n    Of a number'], ''),
    (['    def f(self, i:int)->bool: # By its number'], [], 'bool\n    By its number'),
    (['def f(a=(1,', '         2)): # nothing', '    b:int=1 # no parameter'], [], ''),
    (['class C:', '    "A thing"', '    a:int # One', '    b:list=field(default_factory=list) # Two', '    def f(self): ...', '    c:int=1 # no field'],
     ['a : int\n    One', 'b : list, default field(default_factory=list)\n    Two'], '')], ids=range(5))
def test_signatures_are_read(source, found, result): assert parameters(source, 0) == (found,result)

def test_a_docstring_of_its_own_stays():
    doc = 'x\n\nParameters\n----------\na : int'
    assert explained(doc, ['def f(', '    a:int, # Another', '): ...'], 0) == doc
    assert explained(None, ['def f(): ...'], 0) == '' and explained('x', [], None) == 'x'

def test_it_costs_little_at_import():
    code = ("import time, fastai.vision.all, latentreg_fastai.help as h; h.document, f = lambda *a: None, h.document; import latentreg_fastai.all; "
            "t = time.process_time(); f(); print(time.process_time() - t)")
    once = lambda: float(subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True,
                                        cwd=Path(latentreg_fastai.__file__).parents[1]).stdout)
    assert any(once() < .06 for _ in range(3))
