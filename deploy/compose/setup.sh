#!/bin/sh
# Makes what compose.yaml needs and nobody else should have: passwords, the settings with them, and folders for what is kept.
#   sh setup.sh
# All of it goes to `made`, and the account that the containers run under to `.env`. Root makes it for another: number 10001.
set -eu
umask 077
cd "$(dirname "$0")"
if [ -e made ]; then
  echo "$PWD/made is there already, and nothing was changed" >&2
  exit 1
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

mkdir -p made/prometheus made/grafana
# In its container the server has the folder under another name, and only networks of ours.
AS=/clusterports sh ../redis/install.sh "$PWD/made/valkey" 0.0.0.0
# What one server has no use for, and should not be able to read.
mv made/valkey/passwords made/passwords
rm made/valkey/replicated.conf made/valkey/sentinel.conf

password=$(sed -n 's/^clusterports-status //p' made/passwords)
cat > made/clusterports.toml <<EOF
# The settings of the exporter and of the page. They need the ranges of your managers, if those are not the default ones.
url = "redis://clusterports-status:$password@valkey:6379/0"
EOF
secret > made/token
secret > made/grafana-password

account=$(id -u):$(id -g)
if [ "$account" = 0:0 ]; then
  account=10001:10001
  chown -R $account made
fi
echo "ACCOUNT=$account" > .env
echo "Made $PWD/made. Now: docker compose up -d"
