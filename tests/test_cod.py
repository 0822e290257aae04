"""Fetching from COD, against a small server of our own that answers as COD does, and as it should not."""

import hashlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from xrd_helpers import cli, cod
from xrd_helpers.cif import read_cif
from xrd_helpers.cod import CodError, fetch_cod, read_ids

NUMBERS = [f"{n}" for n in range(4000001, 4000007)]
FAST = dict(pause=0.01, timeout=0.4)


def entry(number):
    """A CIF as COD has it: its number stands before the loops."""
    return f"""#------------------------------------------------------------------------------
# This file is available in the Crystallography Open Database (COD),
# http://www.crystallography.net/
data_{number}
_cell_angle_alpha 90
_cell_angle_beta 104.2(1)
_cell_angle_gamma 90
_cell_length_a 12.1
_cell_length_b 6.3
_cell_length_c 9.2
_symmetry_space_group_name_H-M 'P 1 21/c 1'
_cod_database_code {number}
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
C1 0.11 0.22 0.33 0.04
O1 0.41 0.27 0.68 0.05
""".encode()


class Server:
    """Answers a request with the next of ``plan[path]``, and with what COD would say when that is used up."""

    def __init__(self):
        self.ids, self.plan, self.asked = list(NUMBERS), {}, []
        self.at_work = self.most_at_work = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.at_work += 1
                outer.most_at_work = max(outer.most_at_work, outer.at_work)
                try:
                    outer.answer(self)
                except OSError:  # the other side has left
                    pass
                outer.at_work -= 1

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/cod"

    def answer(self, handler):
        url = urlsplit(handler.path)
        path = url.path.removeprefix("/cod/")
        self.asked.append((path, parse_qs(url.query), handler.headers["User-Agent"], time.monotonic()))
        if self.plan.get(path):
            self.plan[path].pop(0)(handler)
        elif path == "result":
            say("\n".join(self.ids).encode() + b"\n")(handler)
        elif path.removesuffix(".cif") in self.ids:
            say(entry(path.removesuffix(".cif")))(handler)
        else:
            say(b"<html>Not Found</html>", 404)(handler)

    def paths(self):
        return [path for path, *_ in self.asked]


def say(body, status=200, length=None, **headers):
    """An answer; `length` is what the header claims, if not the truth."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(handler):
    time.sleep(1)


def drop(handler):
    handler.connection.close()


HTML = say(b"<html><body>Too many requests</body></html>")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_entries_of_a_space_group_are_fetched_one_by_one(server, tmp_path):
    done = fetch_cod(tmp_path / "cod", "P 21/c", 100, max_volume=1500, server=server.url, pause=0.03, timeout=1)
    assert names(tmp_path / "cod") == [f"{number}.cif" for number in NUMBERS]
    assert (done.found, sorted(done.fetched), done.present, done.failed) == (6, NUMBERS, [], {})
    assert (tmp_path / "cod" / "4000003.cif").read_bytes() == entry("4000003")
    assert read_cif(tmp_path / "cod" / "4000003.cif").spacegroup.xhm() == "P 1 21/c 1"
    path, query, agent, _ = server.asked[0]
    assert (path, query) == ("result", {"spacegroup": ["P 1 21/c 1"], "format": ["lst"], "vmax": ["1500"]})  # in full
    assert agent.startswith("xrd_helpers/") and all(other == agent for _, _, other, _ in server.asked)
    times = [at for *_, at in server.asked]
    assert min(after - before for before, after in zip(times, times[1:])) > 0.029 and server.most_at_work == 1


def test_the_entries_of_a_list_are_fetched_and_their_checksums_compared(server, tmp_path):
    right, other = NUMBERS[0], NUMBERS[2]
    table = tmp_path / "list.csv"
    table.write_text("name,cod,sha256\n"
                     f"a,{right},{hashlib.sha256(entry(right)).hexdigest()}\nb,{other},{'0' * 64}\nc,,\nd,4999999,\n")
    done = fetch_cod(tmp_path / "cod", "", 100, server=server.url, ids=read_ids(table), **FAST)
    assert (sorted(done.fetched), done.other, list(done.failed)) == ([right, other], [other], ["4999999"])
    assert "result" not in server.paths()
    assert fetch_cod(tmp_path / "cod", "", 100, server=server.url, ids=read_ids(table), **FAST).other == [other]
    (tmp_path / "plain.txt").write_text(f"# of an article\n{right}\n\n{other}\n")
    assert read_ids(tmp_path / "plain.txt") == {right: "", other: ""}


@pytest.mark.parametrize("content, words", [
    (b"4000001\n../../etc\n", "'../../etc' is no COD number"), (b"", "names no entry"), (b"\xff\xfe\x00", "is no text file"),
    (b"name,number\nx,1\n", "has no column cod"), ("cod\n\uff14000001\n".encode(), "is no COD number")])
def test_a_list_that_is_none_is_refused(tmp_path, content, words):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(CodError, match=words):
        read_ids(tmp_path / "list.txt")
    with pytest.raises(CodError, match="is a folder or a device"):
        read_ids("/dev/zero")


@pytest.mark.parametrize("wanted, asked", [("P 21/n", "P 1 21/n 1"), ("R -3", "R -3 :H"), ("F d -3 m:2", "F d -3 m :2")])
def test_symbols_are_those_of_cod(server, tmp_path, wanted, asked):
    fetch_cod(tmp_path, wanted, 1, server=server.url, **FAST)
    assert server.asked[0][1]["spacegroup"] == [asked]


def test_a_larger_number_adds_to_what_is_there(server, tmp_path):
    server.ids = [str(n) for n in range(4000000, 4001000)]
    first = fetch_cod(tmp_path, "P 1 21/c 1", 3, server=server.url, **FAST)
    server.asked.clear()
    server.ids.reverse()
    second = fetch_cod(tmp_path, "P 1 21/c 1", 8, server=server.url, **FAST)
    assert len(first.fetched) == 3 and second.present == first.fetched and len(second.fetched) == 5
    assert len(server.asked) == 1 + 5
    # not the first of the list, which are of one journal
    assert max(map(int, second.present + second.fetched)) - min(map(int, second.present + second.fetched)) > 500


HALF = {
    "half, with the length of the whole": say(entry("4000002")[:400], length=len(entry("4000002"))),
    "half, at the end of a line": say(entry("4000002").rsplit(b"O1", 1)[0], length=len(entry("4000002"))),
    "half, with its own length": say(entry("4000002")[:-10]),
    "500": say(b"", 500), "503": say(b"", 503, Retry_After="0"), "429": say(b"slow", 429), "502": say(b"<html>", 502),
    "time-out": hang, "dropped": drop, "HTML": HTML, "empty": say(b""), "another entry": say(entry("4000001")),
}


@pytest.mark.parametrize("case", HALF)
def test_a_bad_answer_is_asked_for_again(server, tmp_path, case):
    server.plan["4000002.cif"] = [HALF[case]]
    done = fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, **FAST)
    assert done.failed == {} and len(done.fetched) == 6 and server.paths().count("4000002.cif") == 2
    assert (tmp_path / "4000002.cif").read_bytes() == entry("4000002") and len(names(tmp_path)) == 6


@pytest.mark.parametrize("answers, tries, words", [
    ([say(b"<html>Not Found</html>", 404)], 1, "404"),
    ([say(entry("4000001"))] * 2, 2, "its COD number is 4000001"),     # the same again: that is how it stands there
    ([say(b"data_x\n_cell_length_a 5\n")] * 2, 2, "its COD number is missing"),
    ([say(entry("4000002")[:-10])] * 2, 2, "no CIF file that can be read"),
    ([say(b"", 500)] * 4, 4, "500"),
    ([hang] + [say(b"", 503)] * 3, 4, "503"),
    ([say(b"", 503)] + [hang] * 3, 4, "timed out"),
    ([say(entry("4000002")[:400], length=len(entry("4000002")))] * 4, 4, f"400 of {len(entry('4000002'))} bytes"),
])
def test_an_entry_that_cannot_be_had_is_left_and_the_others_fetched(server, tmp_path, answers, tries, words):
    server.plan["4000002.cif"] = list(answers)
    done = fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, pause=0.002, timeout=0.4)
    assert list(done.failed) == ["4000002"] and words in done.failed["4000002"] and "\n" not in done.failed["4000002"]
    assert server.paths().count("4000002.cif") == tries and len(done.fetched) == 5
    assert names(tmp_path) == [f"{number}.cif" for number in NUMBERS if number != "4000002"]  # and no half file


def test_waits_grow_and_the_servers_own_are_kept(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(cod.time, "sleep", waits.append)
    monkeypatch.setattr(cod.time, "time", lambda: 1445412480 - 30)  # half a minute before the date below
    server.ids = ["4000002"]
    server.plan["4000002.cif"] = [say(b"", 500), say(b"", 503, Retry_After="7"),
                                  say(b"", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")]
    fetch_cod(tmp_path, "P 1 21/c 1", 1, server=server.url, pause=0.1, timeout=1)
    assert [wait for wait in waits if wait > 0.1] == [pytest.approx(0.4), 7, 30]
    server.plan["4000002.cif"] = [say(b"", 500)] * 3
    (tmp_path / "4000002.cif").unlink()
    waits.clear()
    fetch_cod(tmp_path, "P 1 21/c 1", 1, server=server.url, pause=0.1, timeout=1)
    assert [wait for wait in waits if wait > 0.1] == pytest.approx([0.4, 1.6, 6.4])


@pytest.mark.parametrize("answer", [say(b"", 503), say(b"", 403), HTML, drop], ids=["503", "403", "HTML", "dropped"])
def test_a_server_that_refuses_is_left_alone(server, tmp_path, answer):
    server.ids = [str(n) for n in range(4000000, 4000100)]
    order = fetch_cod(tmp_path / "dry", "P 1 21/c 1", 10, server=server.url, **FAST).fetched
    server.asked.clear()
    for number in order[2:]:
        server.plan[f"{number}.cif"] = [answer] * 4
    with pytest.raises(CodError, match=r"failed on 3 files one after another .*2 are new in .*the same command goes on"):
        fetch_cod(tmp_path / "cod", "P 1 21/c 1", 10, server=server.url, pause=0.002, timeout=0.4)
    assert names(tmp_path / "cod") == sorted(f"{number}.cif" for number in order[:2])
    assert f"{order[5]}.cif" not in server.paths()
    server.plan.clear()
    done = fetch_cod(tmp_path / "cod", "P 1 21/c 1", 10, server=server.url, **FAST)
    assert (done.present, done.fetched) == (order[:2], order[2:])


def sent_elsewhere(where, status=302):
    return say(b"", status, Location=where)


def test_a_server_cannot_send_us_elsewhere(server, tmp_path):
    """To another host or to files it is not followed, on the same server it is, and not for ever."""
    server.plan["4000001.cif"] = [sent_elsewhere("http://localhost:9/secret")]
    server.plan["4000002.cif"] = [sent_elsewhere("file:///etc/passwd", 301)]
    server.plan["4000003.cif"] = [sent_elsewhere("/cod/moved")]
    server.plan["moved"] = [say(entry("4000003"))]
    server.plan["4000004.cif"] = [sent_elsewhere("/cod/4000004.cif")] * 9
    done = fetch_cod(tmp_path / "cod", "P 1 21/c 1", 100, server=server.url, **FAST)
    assert done.fetched and "4000003" in done.fetched and set(done.failed) == {"4000001", "4000002", "4000004"}
    assert "redirects to http://localhost:9/secret, which is not asked" in done.failed["4000001"]
    assert "redirects to file:///etc/passwd" in done.failed["4000002"] and "more than 5 times" in done.failed["4000004"]
    assert names(tmp_path) == ["cod"] and names(tmp_path / "cod") == ["4000003.cif", "4000005.cif", "4000006.cif"]


@pytest.mark.parametrize("numbers", [["../../evil"], ["4000001", "/etc/x"], ["4000001/../../../x"], ["..%2Fevil"],
                                     ["\u0664000001"]])
def test_a_server_cannot_name_files(server, tmp_path, numbers):
    server.ids = numbers
    with pytest.raises(CodError, match="the answer is no list of COD numbers"):
        fetch_cod(tmp_path / "cod", "P 1 21/c 1", 100, server=server.url, **FAST)
    assert not list(tmp_path.iterdir())


def test_a_server_cannot_fill_the_disk_or_keep_us_for_ever(server, tmp_path, monkeypatch):
    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * 100_000)

    monkeypatch.setattr(cod, "MAX_BYTES", 1_000_000)
    server.plan = {"4000001.cif": [endless] * 4, "4000002.cif": [trickle] * 4}
    done = fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, pause=0.01, timeout=0.1)
    assert "more than 1 MB" in done.failed["4000001"] and "not whole after 1 s" in done.failed["4000002"]
    assert server.paths().count("4000001.cif") == 1 and len(done.fetched) == 4
    monkeypatch.setattr(cod, "LEAST_FREE", 1e30)
    with pytest.raises(CodError, match="GB is free where .* lies: make room"):
        fetch_cod(tmp_path / "full", "P 1 21/c 1", 100, server=server.url, **FAST)
    assert not (tmp_path / "full").exists()


def test_entries_that_are_gone_do_not_look_like_refusals(server, tmp_path):
    for number in NUMBERS[:5]:
        server.plan[f"{number}.cif"] = [say(b"gone", 410)]
    done = fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, **FAST)
    assert done.fetched == [NUMBERS[5]] and sorted(done.failed) == NUMBERS[:5]


def test_a_damaged_file_in_the_folder_is_fetched_again(server, tmp_path):
    for number in NUMBERS:
        (tmp_path / f"{number}.cif").write_bytes(entry(number))
    (tmp_path / "4000004.cif").write_bytes(entry("4000004")[:-10])
    (tmp_path / "4000005.cif").write_bytes(entry("4000001"))
    done = fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, **FAST)
    assert sorted(done.fetched) == ["4000004", "4000005"] and len(done.present) == 4
    assert (tmp_path / "4000004.cif").read_bytes() == entry("4000004")


def test_an_interrupt_leaves_whole_files_only(server, tmp_path, monkeypatch):
    def interrupt(handler):
        stop.append(True)
        say(entry("4000002"))(handler)

    stop = []
    server.plan["4000002.cif"] = [interrupt]
    check = cod._problem

    def checked(body, number):
        if stop:
            raise KeyboardInterrupt
        return check(body, number)

    monkeypatch.setattr(cod, "_problem", checked)
    with pytest.raises(KeyboardInterrupt):
        fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, **FAST)
    assert all(path.read_bytes() == entry(path.stem) for path in tmp_path.iterdir())
    monkeypatch.setattr(cod, "_problem", check)
    assert fetch_cod(tmp_path, "P 1 21/c 1", 100, server=server.url, **FAST).failed == {} and len(names(tmp_path)) == 6


@pytest.mark.parametrize("plan, words", [
    ([HTML] * 2, "the search in .* failed: the answer is no list of COD numbers"),
    ([say(b"", 500)] * 4, "the search in .* failed: .*500"),
    ([say(b"")], "has no entry with space group P 1 21/c 1 and a cell of at most 900 Å³"),
])
def test_a_search_that_fails_is_one_sentence(server, tmp_path, plan, words):
    server.plan["result"] = plan
    with pytest.raises(CodError, match=words) as caught:
        fetch_cod(tmp_path, "P 1 21/c 1", 100, max_volume=900, server=server.url, pause=0.002, timeout=0.4)
    assert "\n" not in str(caught.value) and len(server.asked) <= 4


def test_what_was_typed_wrong_is_said_before_anything_is_asked(server, tmp_path):
    with pytest.raises(CodError, match="'P 99' is no known space group"):
        fetch_cod(tmp_path, "P 99", 1, server=server.url, **FAST)
    with pytest.raises(CodError, match="no address of a server"):
        fetch_cod(tmp_path, "P 1", 1, server="file:///etc", **FAST)
    assert server.asked == []
    with pytest.raises(CodError, match="the search in http://127.0.0.1:9/cod failed: .*Connection refused"):
        fetch_cod(tmp_path, "P 1", 1, server="http://127.0.0.1:9/cod", pause=0.001, timeout=0.4)


def test_the_command_counts_and_lists(server, tmp_path, monkeypatch, capsys):
    server.plan = {"4000002.cif": [say(b"", 404)], "4000003.cif": [say(b"", 500), hang]}
    (tmp_path / "4000001.cif").write_bytes(entry("4000001"))
    monkeypatch.setattr(sys, "argv", ["xrd", "fetch-cod", "--spacegroup", "P 21/c", "--max", "6", "--out", str(tmp_path),
                                      "--server", server.url, "--pause", "0.01", "--timeout", "0.4"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out == (
        "6 found, 4 fetched, 1 there already, 1 failed\n  4000002: the server answered 404 Not Found\n")
