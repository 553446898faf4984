"Saving a run and going on with it: the state of callbacks, of others too."
import pytest
from common import *

def test_other_callbacks_when_going_on(tmp_path):
    class Counter_(Callback):
        n = 0
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, s): self.n = s['n']
        def after_batch(self): self.n += 1
    learn = new_learner(path=tmp_path)
    learn.fit(2, cbs=[c := Counter_(), TrainingSaver()])
    raises(["['counter_']", 'cbs'], lambda: new_learner(path=tmp_path).load_training('training'))
    new_learner(path=tmp_path).load_training('training', cbs=(d := Counter_()))
    assert d.n == c.n == 8

@pytest.mark.parametrize('make,is_set', [(lambda: ITRA(source='queue', warmup=0.), lambda cb: len(cb._queue)), (lambda: CenterLoss(), lambda cb: cb.centers is not None)], ids=['queue','centres'])
def test_state(make, is_set, tmp_path):
    "Goes through a file, and the next fit goes on from it"
    a,b,learn = make(),make(),new_learner()
    learn.fit(1, 1e-2, cbs=a)
    torch.save(a.state_dict(), tmp_path/'s.pth')
    b.load_state_dict(torch.load(tmp_path/'s.pth'))                                   # only tensors and containers: no pickle is needed
    assert is_set(b)
    learn.fit(1, 1e-2, cbs=b)
    term = learn.recorder.terms[b.term_name][0]
    assert is_set(b) and term > 0
    learn.fit(1, 1e-2, cbs=(c := make()))
    assert learn.recorder.terms[c.term_name][0] != term
