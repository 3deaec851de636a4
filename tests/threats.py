"""The attack table: what somebody tries, what answers it, the test that shows it, and the guard that is tried out.

``docs/threats.md`` is made of it: ``python tests/threats.py``. ``tests/test_threats.py`` takes each guard out in a copy
of the tree and sees its test fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "threats.md"


@dataclass(frozen=True, slots=True)
class Threat:
    """One row of the table."""

    what: str      # somebody tries
    answer: str
    test: str      # file below tests/, then names
    file: str      # where the guard is
    guard: str     # its text
    gone: str      # what stands there without it


FILES = "Files that a request names"
PAGES = "What is served"
OTHERS = "Other web sites, other machines, other users"
SIGN_IN = "Signing in"
AMOUNT = "Too much of something"
ADAPTERS = "Foreign adapter files"
BASES = "Foreign base models and checkpoints"
PICTURES = "Pictures"

_UPLOADS, _SECURITY, _SIGN_IN = "app/web/test_uploads.py", "app/web/test_security.py", "app/web/test_sign_in.py"
_QUOTAS, _HEADERS = "app/web/test_quotas.py", "adapters/formats/test_header_limits.py"
_CONNECTIONS = "app/web/test_connections.py"
_CHILD, _PREVIEWS = "app/services/test_import_child.py", "app/store/test_previews.py"
_HUB = "training/base_models/test_hub.py"
_CONFIG, _OPTIMIZER = "training/base_models/test_check_config.py", "training/loop/test_optimizer_state.py"

THREATS: dict[str, list[Threat]] = {
    FILES: [
        Threat("a path in the payload of any handler: absolute, relative, link, folder, device, address, NUL",
               "every input of every handler passes one function before Gradio touches it",
               f"{_UPLOADS}::test_no_handler_takes_a_file_that_was_not_uploaded",
               "app/web/components/uploads.py", "for path in _paths(inputs):", "for path in ():"),
        Threat("a link or a folder inside the upload folder", "only plain files, by their own names",
               f"{_UPLOADS}::test_a_plain_file_of_the_folder_is_an_upload",
               "app/web/components/uploads.py", "and not given.is_symlink() and", "and"),
        Threat("a folder where a file is expected", "only plain files",
               f"{_UPLOADS}::test_a_plain_file_of_the_folder_is_an_upload",
               "app/web/components/uploads.py", " and real.is_file():", ":"),
        Threat("a handler that is made to return a foreign path", "Gradio's own check is switched on",
               f"{_UPLOADS}::test_no_handler_can_hand_out_a_foreign_file",
               "app/web/components/gradio_internals.py", "self.has_launched = True", "self.has_launched = False"),
        Threat("a recipe in a picture, or other data of strangers, that looks like a file or an address to Gradio",
               "answers hold no file but uploaded and offered ones",
               f"{_UPLOADS}::test_a_recipe_that_looks_like_a_file_is_a_recipe",
               "app/web/site.py", "check_inputs, without_foreign_files,", "check_inputs, lambda answer: answer,"),
        Threat("a direct post past the queue", "closed for everything that is queued",
               f"{_UPLOADS}::test_the_door_beside_the_queue_is_no_way_in",
               "app/web/site.py", ", api_open=False", ""),
        Threat("a file of the server's working folder", "the server works in an empty folder",
               f"{_SECURITY}::test_the_working_folder_holds_nothing",
               "app/web/server.py", "os.chdir(empty)", "pass"),
    ],
    PAGES: [
        Threat("HTML, SVG or JavaScript in the gallery that would run as a page of ours",
               "pictures by content, with nosniff; nothing else",
               f"{_SECURITY}::test_only_pictures_come_from_the_home_whatever_they_are_called",
               "app/web/pictures.py", "return (real, kind) if kind else None", 'return real, kind or "text/html"'),
        Threat("logs, recipes and checkpoints of runs", "of runs only previews and pairs of pictures",
               f"{_SECURITY}::test_only_pictures_come_from_the_home_whatever_they_are_called",
               "app/web/pictures.py", "if folder == home.runs and (", "if False and ("),
        Threat("a link in the gallery that leads out of it", "links are not followed",
               f"{_SECURITY}::test_links_out_of_the_gallery_are_not_followed",
               "app/web/pictures.py", "if real != folder.resolve() / inside or not real.is_file():",
               "if not real.is_file():"),
        Threat("other files of the home", "one place decides on addresses of files, and knows three folders",
               f"{_SECURITY}::test_gallery_pictures_are_served_and_nothing_else",
               "app/web/pictures.py", "folders = (home.gallery, home.runs, home.thumbnails)", "folders = (home.path,)"),
        Threat("an address that the guards read otherwise than Gradio, by the root path before it",
               "the root path is taken away before all of them",
               f"{_SECURITY}::test_the_root_path_in_a_request_is_no_way_around_the_guards",
               "app/web/security.py", "    app.add_middleware(WithoutPrefix, root_path=access.root_path)\n", ""),
        Threat("a text that becomes a script in a page", "templates escape, and panels take `${}` away",
               "app/web/test_pages.py::test_a_panel_makes_its_value_inert_at_the_start_and_later",
               "app/web/components/panel.py", '.replace("$", "\\\\$")', ""),
        Threat("a link to a page, or a file's name, with HTML that a message repeats",
               "messages escape what they repeat",
               "app/web/test_pages.py::test_a_message_at_the_edge_of_the_page_holds_no_html",
               "app/web/components/page_frame.py", "gr.Warning(shared.error_message(text))", "gr.Warning(text)"),
        Threat("content from elsewhere in a page", "a Content-Security-Policy of 'self'",
               f"{_SECURITY}::test_pages_are_served_with_the_policy",
               "app/web/security.py", '(b"content-security-policy", POLICY.encode()),', ""),
    ],
    OTHERS: [
        Threat("a host name of somebody else's that leads here (DNS rebinding)", "only our own names are answered",
               f"{_SECURITY}::test_a_foreign_host_name_is_refused",
               "app/web/security.py", "allowed_hosts=names, www", 'allowed_hosts=["*"], www'),
        Threat("a write from another site, `Origin: null` among them", "Origin, Referer and Sec-Fetch-Site are checked",
               f"{_SECURITY}::test_a_write_from_another_site_is_refused",
               "app/web/security.py", "if not _same_site(headers):", "if False:"),
        Threat("a simple form of another site", "only JSON is taken, but for uploads and signing in",
               f"{_SECURITY}::test_what_a_form_of_any_site_can_send_is_refused",
               "app/web/security.py", "if _is_simple(headers) and", "if False and"),
        Threat("making the server fetch an address", "no foreign address is fetched",
               f"{_SECURITY}::test_foreign_addresses_are_not_fetched",
               "app/web/security.py", 'if "/file=http" in path or "/proxy=" in path:', "if False:"),
        Threat("what Gradio offers beside: deep links, its editor, reloading", "closed",
               f"{_SECURITY}::test_what_gradio_offers_and_nobody_uses_is_closed",
               "app/web/security.py", 'return words.NOT_OFFERED if path.startswith(_CLOSED) else ""', 'return ""'),
        Threat("an interface that nobody meant to offer", "handlers are private; none has a name by chance",
               f"{_SECURITY}::test_no_endpoint_is_public_that_nobody_named",
               "app/web/pages/settings.py", "drawing_precision(home), None, precision, **UNQUEUED)",
               "drawing_precision(home), None, precision)"),
        Threat("a web socket, which no browser checks", "refused", f"{_SECURITY}::test_web_sockets_are_refused",
               "app/web/security.py", 'if scope["type"] == "websocket":', "if False:"),
        Threat("X-Forwarded headers that nobody's proxy wrote", "dropped",
               f"{_SECURITY}::test_nobody_is_believed_to_be_a_proxy",
               "app/web/security.py", "if not _is_forwarding(pair[0])]", "]"),
        Threat("a sender that writes its own X-Forwarded-For", "the last hop that is no proxy of ours counts",
               f"{_SECURITY}::test_a_named_proxy_alone_says_who_sent_a_request",
               "app/web/security.py", "for hop in reversed(hops) if", "for hop in hops if"),
        Threat("locks that another user of the machine makes first, or holds",
               "they are in a folder that only their owner can use",
               "training/base_models/test_device_lock.py::test_locks_are_where_nobody_else_can_write",
               "training/base_models/device_lock.py", "if not _make_private(folder):", "if False:"),
        Threat("a server open to the network without a password", "it does not start",
               f"{_SECURITY}::test_other_machines_need_a_password",
               "app/web/server.py", "if not password and not (is_loopback(host) and not proxies):", "if False:"),
    ],
    SIGN_IN: [
        Threat("any route without signing in", "one guard before all of them; only `/health` passes",
               f"{_SIGN_IN}::test_only_the_health_route_answers_without_signing_in",
               "app/web/sign_in.py", "if self._is_known(request.headers):", "if True:"),
        Threat("guessing the password", "each wrong one beyond five waits twice as long as the one before, by address",
               f"{_SIGN_IN}::test_each_wrong_password_beyond_the_first_ones_waits_twice_as_long",
               "app/web/sign_in.py", "        if wait > 0:\n            return wait\n", ""),
        Threat("guessing it from many addresses of one IPv6 network", "they count as one",
               f"{_SIGN_IN}::test_an_ipv6_network_is_one_guesser",
               "app/web/quotas.py", 'if found.version == 6 else address', "if False else address"),
        Threat("stopping the server with wrong passwords", "they are compared beside the event loop, one at a time",
               f"{_SIGN_IN}::test_a_password_is_compared_beside_the_event_loop",
               "app/web/sign_in.py",
               "await anyio.to_thread.run_sync(self.password.is_right, given, limiter=self.hashing)",
               "self.password.is_right(given)"),
        Threat("filling the memory with addresses", "4,096 are remembered",
               f"{_SIGN_IN}::test_guessing_from_everywhere_takes_no_memory",
               "app/web/sign_in.py", "if len(self._wrong) > _MOST_ADDRESSES:", "if False:"),
        Threat("a stolen cookie", "sessions end after a week",
               f"{_SIGN_IN}::test_a_session_ends_by_itself",
               "app/web/sign_in.py", "self._ends.get(_digest(token), -math.inf) > self._clock()",
               "_digest(token) in self._ends"),
        Threat("a cookie after signing out", "signing out ends the session itself",
               f"{_SIGN_IN}::test_signing_in_opens_the_pages_and_signing_out_closes_them",
               "app/web/sign_in.py", "        self.sessions.end(self._token(request.headers))\n", ""),
        Threat("reading the password in memory or a dump", "only a salted scrypt hash is kept",
               f"{_SIGN_IN}::test_the_password_is_kept_as_a_salted_hash",
               "app/web/sign_in.py", "self._salt = secrets.token_bytes(16)", 'self._salt = b"salt"'),
        Threat("reading the password in the environment of a child", "it leaves the environment first",
               f"{_SIGN_IN}::test_the_password_is_not_in_the_environment_that_children_get",
               "app/web/server.py", 'os.environ.pop("ATELIER_PASSWORD", "")', 'os.environ.get("ATELIER_PASSWORD", "")'),
        Threat("reading keys of programs in the home", "they are kept as hashes, readable by the owner alone",
               f"{_SIGN_IN}::test_a_program_signs_in_with_a_key_until_it_is_deleted",
               "app/store/api_keys.py", "ApiKey(name, created, _hash(text))", "ApiKey(name, created, text)"),
        Threat("a sign-in link that leads elsewhere", "only pages of ours are opened after it",
               f"{_SIGN_IN}::test_a_browser_comes_to_the_page_it_asked_for",
               "app/web/sign_in.py", 'return page if ours else "/"', "return page"),
        Threat("a sign-in form in an encoding that ends the program", "it is read in one encoding",
               f"{_SIGN_IN}::test_a_form_does_not_choose_how_it_is_decoded",
               "app/web/sign_in.py", "form = _fields(await request.body())", "form = await request.form()"),
        Threat("a script in the address of the sign-in page", "escaped",
               f"{_SIGN_IN}::test_a_browser_comes_to_the_page_it_asked_for",
               "app/web/components/sign_in_page.py", 'replace("{{next}}", escape(page))', 'replace("{{next}}", page)'),
    ],
    AMOUNT: [
        Threat("a flood of requests", "a token bucket by address",
               f"{_QUOTAS}::test_too_many_requests_are_told_when_to_come_again",
               "app/web/quotas.py", "return left >= 1", "return True"),
        Threat("a huge body", "refused by its announced length",
               f"{_QUOTAS}::test_a_body_that_is_no_upload_stays_small",
               "app/web/quotas.py", "if length > self.quotas.body_bytes else (0, \"\")", "if False else (0, \"\")"),
        Threat("a body of unknown length", "refused", f"{_QUOTAS}::test_a_body_of_unknown_length_is_refused",
               "app/web/quotas.py", "if length == math.inf:", "if False:"),
        Threat("uploads without end", "a limit for all together",
               f"{_QUOTAS}::test_uploads_together_stay_below_the_quota",
               "app/web/quotas.py", "if taken + length > self.quotas.upload_bytes:", "if False:"),
        Threat("thousands of empty files", "20,000 may be there", f"{_QUOTAS}::test_so_many_uploads_may_be_there",
               "app/web/quotas.py", "if len(sizes) >= self.quotas.upload_files:", "if False:"),
        Threat("many uploads at once", "those under way count", f"{_QUOTAS}::test_uploads_under_way_count",
               "app/web/quotas.py", "self.coming += length if is_upload else 0", "pass"),
        Threat("filling the disk", "some of it stays free", f"{_QUOTAS}::test_an_upload_leaves_room_on_the_disk",
               "app/web/quotas.py", "if length + self.quotas.spare_bytes > free", "if False"),
        Threat("requests that end in an error, to fill the log", "one line for each",
               f"{_SECURITY}::test_an_error_behind_an_answer_is_one_line_in_the_log",
               "app/web/security.py", "            _log(scope, error)\n", "            raise\n"),
        Threat("a form field of gigabytes beside the files of an upload", "100 kB are taken",
               f"{_UPLOADS}::test_an_upload_has_no_large_form_field",
               "app/web/server.py", "    limit_form_fields()\n    gr.set", "    gr.set"),
        Threat("headers that never end, or one byte at a time", "20 seconds for them",
               f"{_CONNECTIONS}::test_whoever_is_slow_to_ask_is_cut_off",
               "app/web/connections.py", "self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)",
               "pass"),
        Threat("the same while the server starts", "a second for them",
               "app/web/test_starting_page.py::test_whoever_asks_a_byte_at_a_time_does_not_hold_up_the_start",
               "app/web/starting_page.py", " and time.monotonic() < until:", ":"),
        Threat("a body that goes on after it was refused", "the time for the next headers runs meanwhile",
               f"{_CONNECTIONS}::test_a_body_that_nobody_reads_holds_no_connection",
               "app/web/connections.py", "if self.cycle is None or self.cycle.response_complete:",
               "if self.cycle is None:"),
        Threat("a body one byte at a time", "20 kB a second in the mean, and a minute",
               f"{_QUOTAS}::test_a_body_that_comes_too_slowly_is_given_up",
               "app/web/quotas.py", "with anyio.CancelScope(deadline=until):", "with anyio.CancelScope():"),
        Threat("hundreds of connections that stay", "512 from one address",
               f"{_CONNECTIONS}::test_one_address_has_so_many_connections",
               "app/web/connections.py", "if self._is_one_too_many():", "if False:"),
        Threat("a queue without end", "500 runs may wait", "app/jobs/test_jobs.py::test_only_so_many_runs_may_wait",
               "app/jobs/jobs.py", "if len(busy) >= MAX_WAITING:", "if False:"),
    ],
    ADAPTERS: [
        Threat("a small file that claims gigabytes", "a native file's tensors are compared with its header first",
               f"{_HEADERS}::test_a_small_file_with_large_claims_takes_no_memory",
               "adapters/formats/native.py", "        _check_size(path, found)\n", ""),
        Threat("a header of many megabytes", "16 MB are read",
               f"{_HEADERS}::test_a_header_of_many_megabytes_is_not_parsed",
               "adapters/formats/safetensors_header.py", 'if MAX_HEADER < length <= _FORMAT_LIMIT and opens == b"{":',
               "if False:"),
        Threat("too many tensors", "50,000", f"{_HEADERS}::test_too_many_tensors_are_refused",
               "adapters/formats/safetensors_header.py", "if len(header) > MAX_TENSORS:", "if False:"),
        Threat("a shape or a number format that no tensor has", "refused by name of the tensor",
               f"{_HEADERS}::test_a_header_that_lies_is_refused",
               "adapters/formats/safetensors_header.py", "if dtype not in BITS:", "if False:"),
        Threat("a shape that its bytes do not fit", "refused by name of the tensor",
               f"{_HEADERS}::test_a_header_that_lies_is_refused",
               "adapters/formats/safetensors_header.py", "if not 0 <= start <= end or prod(shape) * BITS[dtype] != 8 *"
               " (end - start):", "if False:"),
        Threat("a reader that is led to take memory all the same", "a child process, limited",
               f"{_CHILD}::test_a_reader_that_takes_gigabytes_is_refused_them",
               "app/services/import_child.py", "_set(resource.RLIMIT_AS, int(memory))", "pass"),
        Threat("a reader that never ends", "a child process, limited",
               f"{_CHILD}::test_a_reader_that_never_ends_or_crashes_ends_the_child_alone",
               "app/services/import_child.py", "_set(resource.RLIMIT_CPU, int(seconds) + 1)",
               "_set(resource.RLIMIT_CPU, 20); sys.exit(9)"),
        Threat("a reader that crashes", "the next file is opened by another child",
               f"{_CHILD}::test_a_file_that_ends_the_child_does_not_end_the_import",
               "app/services/import_child.py", "    while left:\n", "    if left:\n"),
        Threat("a reader that is led to the network", "the child has none, where Linux can take it",
               f"{_CHILD}::test_a_reader_has_no_network_where_the_system_can_take_it",
               "app/services/import_child.py", "    leave_network()\n", ""),
        Threat("secrets in the child's environment", "left out", f"{_CHILD}::test_the_child_is_told_no_secrets",
               "app/services/import_child.py", "if key not in _SECRETS}", "}"),
        Threat("a preview picture for a parser that was attacked", "PNG, JPEG and WebP by content, nothing else",
               f"{_PREVIEWS}::test_other_formats_never_reach_their_parser",
               "app/store/previews.py", "with Image.open(io.BytesIO(b64decode(text)), formats=FORMATS)",
               "with Image.open(io.BytesIO(b64decode(text)))"),
        Threat("a small preview of many pixels", "its header is asked for the size first",
               f"{_PREVIEWS}::test_a_small_file_of_many_pixels_is_not_decoded",
               "app/store/previews.py", "if not found or not 0 < _pixels(found[1]) <= MAX_PIXELS:", "if not found:"),
    ],
    BASES: [
        Threat("a hub model that lists pickles, code, or files outside of its folder", "from the hub that HF_ENDPOINT "
               "names (huggingface.co) come configurations, tokenizers and safetensors by known names, nothing else",
               f"{_HUB}::test_what_the_hub_says_of_names_is_not_trusted", "training/base_models/hub.py",
               "needed = [name for name in _CONFIGURATIONS if name in names]", "needed = list(names)"),
        Threat("weights that are changed or damaged on their way from the hub", "their SHA-256 is the one that the hub "
               "names them by", f"{_HUB}::test_weights_that_arrive_otherwise_are_refused",
               "training/base_models/hub_file.py", "if not _is_intact(partial, facts.etag):", "if False:"),
        Threat("a configuration that brings code, a kernel or a package", "refused by its key",
               f"{_CONFIG}::test_a_configuration_that_asks_for_more_is_refused",
               "training/base_models/check_config.py", "if key in _CODE and value is not None:", "if False:"),
        Threat("a configuration that names a foreign class", "only those that are loaded",
               f"{_CONFIG}::test_a_configuration_that_asks_for_more_is_refused",
               "training/base_models/check_config.py", "if given not in _CLASSES[name]:", "if False:"),
        Threat("a foreign class in the index", "only those that are loaded",
               f"{_CONFIG}::test_a_foreign_class_in_the_index_is_refused",
               "training/base_models/check_config.py", "if isinstance(part, list) and not _is_known(name, part):",
               "if False:"),
        Threat("numbers that no such model has", "refused by name",
               f"{_CONFIG}::test_a_configuration_that_asks_for_more_is_refused",
               "training/base_models/check_config.py", "if type(number) is int and abs(number) > _most(key):",
               "if False:"),
        Threat("weights from another folder", "plain names only",
               f"{_CONFIG}::test_weights_from_outside_of_the_folder_are_refused",
               "training/base_models/check_config.py", "if not isinstance(files, dict) or any(", "if False and any("),
        Threat("another model in the place of a part", "refused",
               f"{_CONFIG}::test_another_model_in_the_place_of_a_part_is_refused",
               "training/base_models/check_config.py", 'if (folder / name / "adapter_config.json").exists():',
               "if False:"),
        Threat("a pickle in a checkpoint", "safetensors and JSON; an old file is read without running it",
               f"{_OPTIMIZER}::test_a_state_of_version_0_1_is_read_without_running_it",
               "training/loop/optimizer_state.py", "weights_only=True", "weights_only=False"),
        Threat("a pickle anywhere else in the program", "a rule of the house",
               "test_house.py::test_the_tree_keeps_the_rule[runs_nothing_that_data_brings]",
               "app/store/sidecars.py", "import json\n", "import json\nimport pickle\n"),
        Threat("a pickle as a message in the queue", "messages are JSON",
               "app/jobs/test_jobs.py::test_messages_are_plain_text_that_can_run_nothing", "app/jobs/queue.py",
               "serializer=JsonSerializer(), ", ""),
        Threat("a pickle as a message in Redis, which other machines can write to", "messages are JSON",
               "app/jobs/test_redis_queue.py::test_messages_come_in_order_once_each_and_are_json",
               "app/jobs/redis_queue.py", "serializer=JsonSerializer(), ", ""),
    ],
    PICTURES: [
        Threat("a picture of millions of empty chunks or segments", "50,000, counted before a decoder reads them",
               "training/data/test_picture_parts.py::test_millions_of_empty_parts_are_not_read",
               "training/data/images.py", "    if has_too_many_parts(file):\n", "    if False:\n"),
        Threat("place, camera, comments and prompts inside pictures", "datasets hold pixels alone, upright",
               "app/store/test_datasets.py::test_pictures_arrive_upright_and_say_nothing_about_where_they_are_from",
               "app/store/datasets.py", "save_pixels(picture, copy, form)", "shutil.copyfile(path, copy)"),
        Threat("place, camera, comments and prompts inside pictures that are not trained on yet",
               "a draft holds pixels alone, too",
               "app/store/test_create_draft.py::test_a_draft_says_nothing_about_where_its_pictures_are_from",
               "app/store/drafts/create_draft.py", "save_pixels(image, _folder(home) / copy, form)",
               "(_folder(home) / copy).write_bytes(file.read_bytes())"),
        Threat("half a character in the recipe of a picture, which no page can be sent with", "U+FFFD stands for it",
               "adapters/core/test_parse.py::test_half_a_character_is_replaced_because_nothing_can_write_it",
               "adapters/core/parse.py", "return without_halves(found) if found_halves else found", "return found"),
        Threat("comments that survive being written again", "Pillow's own notes are emptied first",
               "app/store/test_datasets.py::test_pictures_arrive_upright_and_say_nothing_about_where_they_are_from",
               "training/data/images.py", "    bare.info = {}   # Pillow would write some of it again\n", ""),
    ],
}

HEAD = """# Threats

What somebody may try against a server or with a file, what answers it, and the test that shows it. `make slow` removes
each guard in a copy of the tree and expects its test to fail (`tests/test_threats.py`). [SECURITY.md](../SECURITY.md)
says what is promised to whom. This page is made from `tests/threats.py` by running it.
"""
TAIL = """
## What is measured

All 83 guards were taken out one after the other on 2026-11-30 (`python tests/guards.py`, 2 cores, Python 3.11). 79 of
the first 80 tests failed, as they should; that of the connections passed, because the server closed the connection for
another reason a minute later. It was mended, three rows were added, and all four fail.

80 wrong passwords at once, from one address and from 80, while `/health` is requested all the time, by
`pytest -m slow -s tests/app/web/test_sign_in.py`: what `/health` took meanwhile stands in
[docs/robustness.md](robustness.md). Before they were compared beside the event loop, each wrong one stopped every other
request for a second.

## What is open

- **One trust domain.** Whoever signs in sees and changes everything in the home, as on a shared computer. An uploaded
  file is found by everybody who knows its path, which contains a hash.
- **Folders of base models.** Whoever signs in may name any folder of the machine as a base model's, or as one to
  search, and learns whether there is one. Of what lies in it, only base models are used; nothing else is shown.
- **Hard links** in the upload folder are taken for the files that they are: they can't be told from files, and
  downloads are made of them. Making one takes somebody who can write into the home.
- **Pillow 12.3** has vulnerabilities that 13 fixes, among them a heap overflow in its JPEG decoder
  (CVE-2026-112403). Gradio 6.31, the newest release when this was written, forbids Pillow 13. Until then a picture from
  a stranger is a risk; `tests/test_floors.py` fails as soon as Gradio allows 13.
- **A queue in Redis** belongs to whoever can write to it: they start and resume runs of the home, and run no code.
- **Machines that were cut off** and come back kill a training that another one has taken over, within a second; until
  then both may write into the run's folder.
- **Streams that are open** when a session ends go on until they are closed.
- **Other users of the same computer** reach a server without a password, as any program does that runs there.
- **Native code** of torch, Pillow, safetensors and tokenizers is trusted to be right; the child that imports adapters
  limits what a mistake in it can take, and is no sandbox.
- **Windows and macOS**: the child's limits of memory and its missing network are Linux's.
"""


def rendered() -> str:
    """The page."""
    lines = [HEAD]
    for title, threats in THREATS.items():
        lines += [f"## {title}", "", "| Somebody tries | Answer | Test |", "|---|---|---|"]
        lines += [f"| {one.what} | {one.answer} | `tests/{one.test}` |" for one in threats]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
