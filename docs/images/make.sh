#!/bin/sh
# Makes the pictures of the web app for the docs: the real page in Chromium, as a test of it opens it, in desktop size, as
# wide as a tablet and as a phone, light and dark. Needs what tests/run.sh --install installs.
set -eu
cd "$(dirname "$0")/../.."
SCREENSHOTS=$PWD/docs/images
export SCREENSHOTS
test=api::web_app::the_page_fits_each_width_and_is_usable_by_all
before=$(mktemp)
cargo test --test integration -- --exact "$test" --nocapture
for picture in account-1280-light account-1280-dark account-768-light account-360-light account-360-dark iphone-360-dark; do
    file=$SCREENSHOTS/web-app-$picture.png
    [ "$file" -nt "$before" ] || { echo "$file was not made; see above" >&2; exit 1; }
done
rm "$before"
