#!/bin/sh
# Fills in the files beside it for one server, under the account that will run it:
#   sh install.sh FOLDER ADDRESS [PRIMARY]
# FOLDER, an absolute path, then has redis.conf, replicated.conf, sentinel.conf, users.acl, and in `passwords` those of the users.
# Copy that one to the FOLDER of every other server of the same service before this is run there: what is in it is used.
# For a server in a container: AS=PATH sh install.sh ..., with the path at which it sees FOLDER.
set -eu
umask 077
from=$(dirname "$0") folder=$1 address=$2 primary=${3:-$2}
if [ -e "$folder/redis.conf" ]; then
  echo "$folder/redis.conf is there already, and nothing was changed" >&2
  exit 1
fi
mkdir -p "$folder/data"
if [ ! -e "$folder/passwords" ]; then
  for user in $(sed -n 's/^user .*#@SHA256 \(.*\)@/\1/p' "$from/users.acl"); do
    password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ ${#password} = 48 ] # an empty one would let everybody in
    echo "$user $password"
  done > "$folder/passwords.new"
  mv "$folder/passwords.new" "$folder/passwords"
fi
edit="s|@FOLDER@|${AS:-$folder}|;s|@ADDRESS@|$address|;s|@PRIMARY@|$primary|"
while read -r user password; do
  hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
  [ ${#hash} = 64 ]
  edit="$edit;s|@SHA256 $user@|$hash|;s|@PASSWORD $user@|$password|"
done < "$folder/passwords"
for file in redis.conf replicated.conf sentinel.conf; do
  sed "$edit" "$from/$file" > "$folder/$file"
done
# A server takes neither comments nor a user in several lines.
sed "/^#/d;$edit" "$from/users.acl" | awk 'NF && /^user/ && n++ {print ""} NF {printf "%s", $0} END {print ""}' > "$folder/users.acl"
