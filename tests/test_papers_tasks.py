"The tasks of the papers beside classification: reconstruction and a GAN, and how they are judged."
import pytest
import json
from common import *

from common_bench import *

def test_reconstruction_is_judged_by_the_pixels():
    run = {**SMALL, **RUNS['reconstruction']}
    learn = trained(run)
    x,pixels,y = (torch.cat(t) for t in zip(*learn.dls.valid))
    learn.model.eval()
    with torch.no_grad(): want = ((learn.model(x) - pixels)**2).double().mean().item()
    close(one_run(run)['error'], 100*want, eps=1e-4)
    assert 0 <= pixels.min() and pixels.max() <= 1 and y.dtype == torch.int64

def test_a_gan_is_judged_by_features():
    "Against the judge's own network and the images themselves"
    from scipy.linalg import sqrtm
    run = {**SMALL, **RUNS['gan']}
    learn,task = trained(run),task_of(Run.from_dict(run))
    before = weights(learn),random_state()
    got = task.figures(learn)
    assert same(before[0], weights(learn)) and random_state() == before[1] and got == task.figures(learn) and 0 < got['judge_error'] < 60
    judge,real,_ = gan_judge(datasets[run['data']], json.dumps(run['data_args']))
    with no_random(), torch.no_grad(): images = torch.cat([x for _,x in learn.dls.valid])
    torch.testing.assert_close(judge(images).detach(), real, rtol=1e-3, atol=1e-4)
    with no_random(0), torch.no_grad():
        learn.model.eval()
        fake = torch.cat([judge(learn.model.generator(noise)) for noise,_ in learn.dls.valid])
    m,v = zip(*[(z.double().mean(0).numpy(),np.cov(z.double().numpy(), rowvar=False)) for z in (fake,real)])
    close(got['error'], ((m[0]-m[1])**2).sum() + np.trace(v[0] + v[1] - 2*sqrtm(v[0] @ v[1]).real), eps=got['error']*1e-3)
    import base64, io
    with Image.open(io.BytesIO(base64.b64decode(one_run(run)['samples']))) as im: assert im.size == (8*9+1,8*9+1) and np.ptp(np.asarray(im)) > 50
