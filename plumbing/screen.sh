# What a run prints about itself: for each stage a line that says where it is and how long is left,
# and the command.

print_stage() {                               # print_stage TITLE COMMAND...
    echo
    echo "$1"
    shift
    print_command "$@"
}

print_command() {                             # to be pasted, on lines of at most 100 columns
    local word quoted line= part= words=0
    for word in "$@" --; do                   # an option and its first value stay together
        if [[ $word == --* ]] || ((words == 2)); then
            if [ -z "$line" ]; then
                line="  $part"
            elif ((${#line} + ${#part} > 97)); then
                echo "$line \\"
                line="      $part"
            else
                line="$line $part"
            fi
            part= words=0
        fi
        printf -v quoted %q "$word"
        part=$part${part:+ }$quoted words=$((words + 1))
    done
    echo "$line"
}

describe() {                                  # describe OUTPUT SCRIPT OPTIONS...
    local name under="r_$K" round
    name=$(basename "$1")
    name=${name%.*} kind=${2%.py} amount=1
    case " $LEARN $* " in
        *" --no-reward-token "* | *" --reward-token none "*) under="no token" ;;
    esac
    case $kind in
        evaluate) amount=$((n_tested * $(samples_in "$@"))) ;;
        learn) round=$((10#$name)) ;;
        *) round=$((10#$name + 1)) ;;
    esac
    case $kind-$name in
        explore-00) title="explore: $(thousands $n_explored) completions of p0" ;;
        explore-*) title="explore: $(thousands $n_explored) completions under $under" ;;
        quantize-*) title="quantize: the samples by reward, cut into D^1 ... D^$K" ;;
        learn-*) title="learn: $STEPS updates with $BATCH samples each" ;;
        evaluate-dial-none)
            amount=$((amount * n_tokens))
            [ $n_tokens = 1 ] || under="r_1 ... r_$K and no token"
            title="evaluate: $(thousands $amount) completions under $under"
            ;;
        *-base*) title="evaluate: $(thousands $amount) completions of p0" ;;
        *) title="evaluate: $(thousands $amount) completions under $under" ;;
    esac
    [ -z "${round:-}" ] || ((ITERATIONS == 0)) || title="round $round of $ITERATIONS · $title"
}

thousands() {                                 # 1536 -> 1,536
    local n=$1 rest=
    while ((${#n} > 3)); do
        rest=,${n:$((${#n} - 3))}$rest
        n=${n:0:$((${#n} - 3))}
    done
    echo "$n$rest"
}

samples_in() {                                # samples_in OPTIONS...: the last --num-samples, or 25
    local word before= n=25
    for word in "$@"; do
        [ "$before" != --num-samples ] || n=$word
        before=$word
    done
    echo "$n"
}

# ---------------------------------------------------------------------------- how long is left
#
# Of each kind of stage: left_KIND, the amount that is still to be done; done_KIND, what this call
# has done; took_KIND, its seconds. Evaluation is counted in completions, all others in stages.

n_explored=$(grep -c '[^[:space:]]' "$PROMPTS" || true)
n_tested=$(grep -c '[^[:space:]]' "$TEST_PROMPTS" || true)
if [ -n "$NUM_PROMPTS" ] && ((NUM_PROMPTS < n_explored)); then
    n_explored=$NUM_PROMPTS
fi
n_explored=$((n_explored * NUM_SAMPLES))
n_tokens=$((K + 1))                           # of the dial
case " $LEARN " in *" --no-reward-token "*) n_tokens=1 ;; esac
left_explore=$ITERATIONS left_quantize=$ITERATIONS left_learn=$ITERATIONS
left_evaluate=$((n_tested * (2 * $(samples_in $EVALUATE) + DIAL_SAMPLES * n_tokens)))
if [ "$TASK" = repetition ]; then
    left_evaluate=$((left_evaluate + n_tested * 2 * 2))
fi
done_explore=0 done_quantize=0 done_learn=0 done_evaluate=0
took_explore=0 took_quantize=0 took_learn=0 took_evaluate=0

count_stage() {                               # count_stage [SECONDS]: none if it was there already
    printf -v "left_$kind" %d $((left_$kind - amount))
    if [ -n "${1:-}" ]; then
        printf -v "done_$kind" %d $((done_$kind + amount))
        printf -v "took_$kind" %d $((took_$kind + $1))
    fi
}

time_left() {                                 # from the second round on
    local kind s=0
    for kind in explore quantize learn; do
        ((left_$kind > 0)) || continue
        ((done_$kind > 0)) || return 0
        s=$((s + left_$kind * took_$kind / done_$kind))
    done
    if ((done_evaluate > 0)); then
        s=$((s + left_evaluate * took_evaluate / done_evaluate))
    elif ((done_explore * n_explored > 0)); then           # a completion takes about as long there
        s=$((s + left_evaluate * took_explore / (done_explore * n_explored)))
    else
        return 0
    fi
    if ((s < 55)); then
        echo " · about $((s / 10 * 10 + 10)) s left"
    elif ((s < 5400)); then
        echo " · about $(((s + 30) / 60)) min left"
    else
        echo " · about $((s / 3600)) h $((s % 3600 / 60)) min left"
    fi
}
