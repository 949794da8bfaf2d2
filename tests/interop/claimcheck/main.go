// Claimcheck shows what the Go library makes of claims, so that another implementation can be compared with it.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
)

const usage = `claimcheck: the Go library's view of NATS claims

  claimcheck                 reads lines {"token","kind"}, prints what the library sees
  claimcheck chain           reads {"operator","account","user"}, prints whether each signed the next
  claimcheck fields          prints every member that claims may have
  claimcheck time --count N  signs, decodes and validates N accounts, prints the seconds
  claimcheck generate --seed N --count M
                             makes random claims of every kind, prints each token and what the library sees in it`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "claimcheck:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	if len(arguments) == 0 {
		return checkLines(os.Stdin, lines)
	}
	flags := flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	count := flags.Int("count", 100, "how many claims")
	seed := flags.Int64("seed", 1, "of the random claims")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	switch arguments[0] {
	case "chain":
		return judgeChains(os.Stdin, lines)
	case "fields":
		return listFields(lines)
	case "time":
		return measure(*count, lines)
	case "generate":
		return generate(*seed, *count, lines)
	default:
		return fmt.Errorf("unknown command %q\n%s", arguments[0], usage)
	}
}
