#!/bin/sh
# Makes the pictures of the web app and of the status page for the docs: the real pages in Chromium, as tests of them open them,
# in desktop size, as wide as a tablet and as a phone, light and dark. Needs what tests/run.sh --install installs.
set -eu
cd "$(dirname "$0")/../.."
SCREENSHOTS=$PWD/docs/images
export SCREENSHOTS
before=$(mktemp)
for test in api::web_app::the_page_fits_each_width_and_is_usable_by_all admin::page::the_page_fits_each_width_and_is_usable_by_all; do
    cargo test --test integration -- --exact "$test" --nocapture
done
for picture in web-app-account-1280-light web-app-account-1280-dark web-app-account-768-light web-app-account-360-light \
    web-app-account-360-dark web-app-iphone-360-dark status-1280-light status-1280-dark status-360-light; do
    file=$SCREENSHOTS/$picture.png
    [ "$file" -nt "$before" ] || { echo "$file was not made; see above" >&2; exit 1; }
done
rm "$before"
