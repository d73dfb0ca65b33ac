"""What is asked of trust beside a link's own table; nothing here opens gold: `pipeline` grades, or hands it to `afterwards`."""
