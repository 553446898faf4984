"The types of the public API fit the code that users copy, and they are checked."
import importlib.util
from pathlib import Path
import pytest

pytest.importorskip('basedpyright', reason='the type checker comes with the extra `dev`')
spec = importlib.util.spec_from_file_location('check_types', Path(__file__).parents[1]/'.ci/check_types.py')
check_types = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_types)

START = 'from fastai.vision.all import *\nfrom latentreg_fastai.all import *\n'
WRONG = {'alpha': "ManifoldMixup(alpha='two')", 'name': 'VarianceRegularizer(wieght=1.)', 'missing': 'SemiSupervisedMixup()',
         'layer': 'ITRA(layer=3.5)', 'patched class': "LatentMonitor(every='often')", 'function': 'semisup_dls(1, 2, 3, 4, 5, 6, 7, 8)'}
RIGHT = ["ManifoldMixup(2., layers=['0','1'])", "ManifoldMixup(layers='all', input_mixup=False)", 'VarianceRegularizer(SchedCos(0.,1.), layer=nn.Linear)',
         "ITRA(source='split', sigma=lambda d: d.median())", 'PhantomEmbedding(aggregate=lambda z: z[:,0])', 'CenterLoss(layer=lambda m: m[0])',
         'LatentMonitor(5, layer=-1)', 'SemiSupervisedMixup([], weight=1)', 'fit_vae(dls, 5)']

def test_types_fit_the_readme_and_the_tutorials_and_what_is_wrong_is_found():
    wrong,right = [(k, START + v) for k,v in WRONG.items()],('right', START + 'def f(dls):\n    ' + '\n    '.join(RIGHT))
    found = list(check_types.check([*check_types.pages(), right, *wrong]))
    assert {name for name,*_ in found} == {*WRONG}, [f for f in found if f[0] not in WRONG] or {*WRONG} - {f[0] for f in found}
