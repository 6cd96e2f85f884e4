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
secret() {
  made=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  [ ${#made} = 48 ] && printf %s "$made"
}

# Under another name until all of it is there, so that it can be run again whatever failed.
new=made.new
rm -rf $new
mkdir -p $new/prometheus $new/grafana
# In its container the server has the folder under another name, and only networks of ours.
AS=/clusterports sh ../redis/install.sh "$PWD/$new/valkey" 0.0.0.0
# What one server has no use for, and should not be able to read.
mv $new/valkey/passwords $new/passwords
rm $new/valkey/replicated.conf $new/valkey/sentinel.conf

password=$(sed -n 's/^clusterports-status //p' $new/passwords)
cat > $new/clusterports.toml <<EOF
# The settings of the exporter and of the page. They need the ranges of your managers, if those are not the default ones.
url = "redis://clusterports-status:$password@valkey:6379/0"
EOF
secret > $new/token
secret > $new/grafana-password

account=$(id -u):$(id -g)
if [ "$account" = 0:0 ]; then
  account=10001:10001
  chown -R $account $new
fi
echo "ACCOUNT=$account" > .env
mv $new made
echo "Made $PWD/made. Now: docker compose up -d"
