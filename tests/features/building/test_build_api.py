import saelab


def test_an_index_is_built_and_opened_in_python(world, tmp_path):
    index = saelab.build_index(world.run, tokens="2k", lm=world.lm, out=tmp_path, parts=(), quiet=True)
    assert 0 < index.n_tokens <= 2_000 and index.d_sae == 96
    again = saelab.open_index(world.run, out=tmp_path)
    assert again.rows() == index.rows()
    whole = saelab.build_index(world.run, lm=world.lm, out=tmp_path, parts=(), quiet=True)
    assert whole.n_tokens == world.store.n_rows(None, None)
