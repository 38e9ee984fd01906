#!/bin/sh
# Writes a random secret for each that docker-compose.yml names into ./secrets, and leaves alone what is there.
# The folder is closed to other users of this machine. The files are not: containers read them under ids of their own.
set -eu
folder=${1:-secrets}
mkdir -p -m 700 "$folder"
for name in database_password broker_password store_access_key_id store_secret_access_key; do
  [ -s "$folder/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name"
  chmod 444 "$folder/$name"
done
