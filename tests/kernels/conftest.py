def pytest_itemcollected(item):
    # pytest-benchmark 5.2 reads what pytest 9.2 no longer has; pyproject.toml says why not 5.3.
    if not hasattr(item, "_nodeid"):
        item._nodeid = item.nodeid
