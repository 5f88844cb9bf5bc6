from penstock.cli.app import main as main
