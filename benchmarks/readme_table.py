"""The table of the README, from results/digits/certified.csv: python -m benchmarks.readme_table. No torch."""

import pandas as pd

RADII = (0.0, 0.25, 0.5, 0.75)
SIGMAS = "0.5"
LEFT_OUT = ("tuned-classifier",)


def main() -> None:
    table = pd.read_csv("results/digits/certified.csv", keep_default_na=False, dtype={"sigmas": str})
    table = table[(table.sigmas == SIGMAS) | (table.certifier == "cascade")]
    table = table[~table.variant.isin(LEFT_OUT) & (table.images == table.images.max())]
    print("| defense | σ | N | " + " | ".join(f"r = {r:g}" for r in RADII) + " | ACR | network calls per draw |")
    print("|---" * (len(RADII) + 5) + "|")
    for _, rows in table.groupby("run", sort=False):
        first = rows.iloc[0]
        name = first.defense + (f" ({first.variant})" if first.variant else "")
        cells = []
        for radius in RADII:
            (row,) = rows[rows.radius == radius].itertuples()
            beyond = radius > row.ceiling and row.certified_accuracy == 0
            points = [f"{100 * share:.0f}" for share in (row.certified_accuracy, row.ci_low, row.ci_high)]
            cells.append("–" if beyond else "{} [{}, {}]".format(*points))
        values = [name, first.sigmas, f"{first.n:,}", *cells, f"{first.acr:.2f}", f"{first.nfe:g}"]
        print(f"| {' | '.join(values)} |")


if __name__ == "__main__":
    main()
