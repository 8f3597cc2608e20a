#!/bin/sh
# As in the official image: options alone mean "the server with these options".
set -e
case "$1" in
  -*) set -- nats-server "$@" ;;
esac
exec "$@"
