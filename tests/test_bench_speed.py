"Times beside the baseline: `speed`, and the script that compares with a bare loop."
import pytest
import subprocess, sys
from common import *

from common_bench import *

def test_speed():
    t = speed(['cw-VR'], rounds=1, settings=['MLP, batch 100, TensorDL'])
    assert list(t.index) == ['baseline again','cw-VR','baseline, ms a step'] and (t > 0).all().all()

def test_speed_of_the_new():
    "The rows beside them, and what has no place there"
    t = speed(['VarMixup','SemiSupervisedMixup'], rounds=1, settings=['MLP, batch 100, TensorDL'])
    col = t.iloc[:,0]
    assert {'VarMixup','baseline + VAE pass','SemiSupervisedMixup','baseline + pseudo-label pass'} <= set(t.index) and (col[['baseline + VAE pass','VarMixup','SemiSupervisedMixup']] > 1).all()
    with pytest.raises(ValueError, match='GANMixup is for a GAN'): speed(['GANMixup'])

def test_throughput(tmp_path):
    "Both loops of the script run, see as many images, and leave a record; on a CPU nothing is promised about their ratio"
    import subprocess, sys
    script,out = Path(__file__).parent.parent/'nbs/results/throughput.py',tmp_path/'t.jsonl'
    p = subprocess.run([sys.executable, '-W', 'ignore', script, '--nets', 'resnet20', '--bs', '8', '--n', '40', '--epochs', '2', '--device', 'cpu', '--out', out], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    row = read_records(out)[0]['rows'][0]
    close(row['ratio'], row['fastai_images_s']/row['bare_images_s'], eps=1e-6)
    assert 'resnet20' in p.stdout and row['fastai_images_s'] > 0 and row['optimizer_ms'] > 0
