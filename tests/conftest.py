"""What every test shares: pictures are drawn without a window; at the end stands what each notebook took."""

import matplotlib

matplotlib.use("Agg")


def pytest_terminal_summary(terminalreporter):
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    took = {
        r.nodeid.removesuffix("::"): r.duration
        for r in reports
        if r.when == "call" and r.nodeid.startswith("notebooks")
    }
    if took:
        terminalreporter.section(f"notebooks: {sum(took.values()):.0f} s")
        for name, seconds in sorted(took.items()):
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
