from mtgen.cli import main

main()
