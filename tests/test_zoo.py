"""The zoo: models × callbacks, each cell tried, checked by plain hooks, and compared with the page. `pytest --all-grids tests/test_zoo.py` tries all models."""
import pytest
import zoo
from zoo_models import NETS

FIRST = ['DenseNet','VGG with BatchNorm','ViT','simple_cnn','tabular_learner','AWD_LSTM classifier','BERT, ids and mask','ALBERT','siamese','GRU, its state','transformer, time first, as long as the batch',
         'one block three times','an auxiliary head, in training','a block that gives a tuple','a dict of two vectors','Linear, ReLU in place','MLP with BatchNorm and dropout','two networks, averaged',
         'checkpoint around the head, reentrant','torch.compile(model)','a part compiled','torch.jit.trace','DataParallel','torch.vmap','several labels','residual']   # one of a kind

@pytest.mark.grid('name', list(NETS), every=10**6, always=FIRST.__contains__)
def test_a_model(name):
    net = NETS[name]
    if net.needs: pytest.importorskip(net.needs)
    assert zoo.line(net, zoo.row(net)) == zoo.written_lines()[name]

def test_the_page_is_whole():
    assert zoo.written('table') == zoo.table(zoo.written_lines()) and zoo.written('notes') == zoo.notes()
    said = zoo.written('table')
    assert all(f'✗{i+1}' in said for i in range(len(zoo.REASONS))) and all(f'✓{chr(97+i)}' in said for i in range(len(zoo.NOTES)))
    assert set(zoo.written_lines()) == set(NETS) and set(FIRST) <= set(NETS)
